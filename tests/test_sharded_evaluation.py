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


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, images, cache):  # noqa: F811
    ckpt, found = models(tmp_path, images), []
    for name, more in (("one", []), ("two", ["trainer=ddp_sim"])):
        words = [f"ckpt={ckpt}", f"cache={cache}", f"out={tmp_path / name}", "classifier_steps=40", "trust=[paths]", "few=true", "n=40",
                 "batch_size=8", *more]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "gentok.evaluate", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
        report = json.loads((tmp_path / name / "generation.json").read_text())
        report["protocol"]["classifier"].pop("seconds")  # the second finds it in the cache
        found.append({key: {k: v for k, v in value.items() if k not in TIMED} for key, value in report.items()})
    assert found[0] == found[1]
    assert (tmp_path / "one" / "samples.png").read_bytes() == (tmp_path / "two" / "samples.png").read_bytes()
