"""Every command that a page or a figure names is one that can still be typed: it composes with the configurations of today."""

import re
import shlex
from pathlib import Path

import pytest

from gentok.cli import compose, shell_words

DOCS = Path(__file__).resolve().parents[1] / "docs"
FORM = re.compile(r"python (train|sample)\.py (.+?)(?=`|,? after:|, then|$)")
CONFIGS = {"train": "config", "sample": "sample"}


def commands() -> set[tuple[str, str]]:
    """(script, words) of every command in docs/results/*.json and in the code spans of all pages."""
    texts = re.findall(r'"command": "(.+)"', "\n".join(path.read_text() for path in DOCS.glob("results/*.json")))
    texts += [span for path in DOCS.rglob("*.md") for span in re.findall(r"`(python [^`]+)`", path.read_text())]
    return {found for text in texts for found in FORM.findall(text)}


@pytest.mark.slow
def test_named_commands_compose():
    found, broken = sorted(commands()), []
    assert len(found) > 50
    for script, words in found:
        try:
            compose(CONFIGS[script], shell_words([word for word in shlex.split(words) if "=" in word]))
        except Exception as error:
            broken.append(f"{script}.py {words}: {error}")
    assert not broken, "\n".join(broken)
