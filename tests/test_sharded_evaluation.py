"""Several processes measure what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_evaluate import cache, images, models  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[1]
TIMED = ("seconds_of_sampling", "tokens_per_second")


def measured(tmp_path, name, words):
    """The reports that a command in one process and one in two have written."""
    reports = []
    for folder, more in (("one", []), ("two", ["trainer=ddp_sim"])):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "gentok.evaluate", *words, f"out={tmp_path / folder}", "trust=[paths]", "batch_size=8", *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
        report = json.loads((tmp_path / folder / f"{name}.json").read_text())
        report["protocol"].get("classifier", {}).pop("seconds", None)  # the second finds it in the cache
        reports.append({key: {k: v for k, v in value.items() if k not in TIMED} for key, value in report.items()})
    return reports


def same_files(tmp_path, *names):
    return all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, images, cache):  # noqa: F811
    words = [f"ckpt={models(tmp_path, images)}", f"cache={cache}", "classifier_steps=40", "few=true", "n=40"]
    one, two = measured(tmp_path, "generation", words)
    assert one == two and same_files(tmp_path, "samples.png")


@pytest.mark.slow
def test_two_processes_reconstruct_what_one_does(tmp_path, images, cache):  # noqa: F811
    words = [f"ckpt={models(tmp_path, images, generator=False)}", f"cache={cache}", "classifier_steps=40", "few=true", "max_held_out=20"]
    one, two = measured(tmp_path, "reconstruction", words)
    assert one == two and same_files(tmp_path, "reconstructions.png")


@pytest.mark.slow
def test_two_processes_reconstruct_the_sounds_that_one_does(tmp_path):
    words = [f"ckpt={ROOT / 'docs/zoo/spoken_digits_codec'}", "max_held_out=20", "data=spoken_digits", "data.items=50"]
    one, two = measured(tmp_path, "reconstruction", words)
    assert one == two and same_files(tmp_path, "reconstructions.png", "07_reconstruction.wav")


@pytest.mark.slow
@pytest.mark.parametrize("region", ["null", "left-half"])
def test_two_processes_measure_the_nll_that_one_does(region, tmp_path):
    words = [f"ckpt={ROOT / 'docs/zoo/mnist5k_masked'}", "protocol=nll", f"region={region}", "max_held_out=20"]
    one, two = measured(tmp_path, "nll", words)
    assert one == two
