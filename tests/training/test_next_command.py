"""The commands that a run ends with work as they are printed."""

import shlex
from pathlib import Path

import pytest

from gentok.cli import compose
from gentok.training.finish import next_command


@pytest.mark.parametrize("trust", [[], ["mine"], ["mine", "theirs.parts"]])
@pytest.mark.parametrize("kind, name", [("generator", "sample"), ("tokenizer", "evaluate")])
def test_what_is_printed_loads_the_bundle_with_the_packages_that_the_run_trusted(kind, name, trust):
    words = shlex.split(next_command(kind, Path("runs/0/bundle"), trust))
    config = compose(name, words[2:])
    assert (config["ckpt"], config["trust"]) == ("runs/0/bundle", trust)
    assert words[1] == {"sample": "sample.py", "evaluate": "evaluate"}[name]
