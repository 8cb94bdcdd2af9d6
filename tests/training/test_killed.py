"""Real processes, really killed: there is always a state to go on from, and what goes on is the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume_kit import CASES

pytest.importorskip("mlxtend")
HERE = Path(__file__).parent


def processes(folder: Path, commands: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    done = subprocess.run([sys.executable, str(HERE / "killed.py"), str(folder), *commands.split()], env=environment, text=True,
                          capture_output=True, timeout=1200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + "".join(p.read_text()[-1000:] for p in folder.glob("*.log"))
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> dict:
    return processes(tmp_path_factory.mktemp("killed"), "term + resume vq by averages")


def test_sigterm_saves_and_says_how_to_go_on(out):
    term = out["term"]
    assert term["status"] == 143 and term["step"] >= 1
    said = [line for line in term["said"] if "SIGTERM" in line]
    assert len(said) == 1 and f"step {term['step']}" in said[0] and "resume=auto" in said[0] and "paths.run=" in said[0]
    assert not any("Traceback" in line for line in term["said"])
    assert term["again"] == 0 and term["end"] == term["step"] + 2


def test_a_run_killed_by_sigkill_is_resumed_to_the_bit(out):
    assert out["resume"] == {"vq by averages": {"killed": -9, "different": []}}


@pytest.mark.slow
def test_twenty_kills_at_any_moment_leave_twenty_states_to_go_on_from(tmp_path):
    out = processes(tmp_path, "moments 20 1")["moments"]
    assert out["steps"] == sorted(out["steps"]) and len(set(out["steps"])) > 15
    assert out["cut"] >= 8, "too few kills fell into the writing of a checkpoint: the property was not tried"


@pytest.mark.slow
def test_every_kind_of_run_killed_by_sigkill_is_resumed_to_the_bit(tmp_path):
    out = processes(tmp_path, "resume " + ", ".join(CASES))["resume"]
    assert {name: end["different"] for name, end in out.items()} == {name: [] for name in CASES}
