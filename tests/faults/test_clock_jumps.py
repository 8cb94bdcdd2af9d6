"""Clocks jump: when they are set, in summer, when a machine wakes up. What is measured here goes by one that does not."""

import ast
import time
from pathlib import Path

import pytest
import torch
from test_run_folder import run

import gentok
import gentok.training.module as module

DAY = 86400.0


class Clocks:
    """The clock on the wall is a day further on whenever it is looked at; the steady one goes a tenth of a second."""

    def __init__(self, booted=0.0):
        self.looks, self.steady, self.perf_counter, self.process_time = 0, booted, time.perf_counter, time.process_time

    def time(self):
        self.looks += 1
        return time.time() + DAY * self.looks

    def monotonic(self):
        self.steady += 0.1
        return self.steady


def steps_of(folder, monkeypatch, *words, clocks=None):
    monkeypatch.setattr(module, "time", clocks or Clocks())
    run(folder, "steps=null", "trainer.checkpoint_every=1", "schedule.warmup=0", *words)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return int(content["global_step"]), content["training"]["elapsed"]


def test_a_budget_does_not_feel_the_clock_jump(tmp_path, monkeypatch):
    steps, elapsed = steps_of(tmp_path / "run", monkeypatch, "budget=2s")
    assert 2 <= steps <= 20 and 2.0 <= elapsed < 4.0


def test_a_budget_by_the_clock_on_the_wall_would(tmp_path, monkeypatch):
    """The mutant: it ends at the first look that is a day later."""
    monkeypatch.setattr(module, "CLOCKS", {**module.CLOCKS, "wall": "time"})
    steps, elapsed = steps_of(tmp_path / "run", monkeypatch, "budget=2s")
    assert not (2 <= steps <= 20 and 2.0 <= elapsed < 4.0)


def test_a_budget_goes_on_after_a_start_of_the_machine(tmp_path, monkeypatch):
    """The steady clock begins anew then, so that only differences count."""
    first, elapsed = steps_of(tmp_path / "run", monkeypatch, "budget=2s", clocks=Clocks(5 * DAY))
    second, after = steps_of(tmp_path / "run", monkeypatch, "budget=4s", "resume=auto", clocks=Clocks(0.0))
    assert elapsed < 4.0 <= after < 6.0 and 2 <= second - first <= 20


ALLOWED = {"cli/run_id.py"}
"""It names a run's folder after the time."""


def looks_at_the_wall(source: str) -> bool:
    names = {"time", "time_ns", "now", "utcnow", "today"}
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return any(call.attr in names and isinstance(call.value, ast.Name) and call.value.id in ("time", "datetime", "date") for call in calls)


def test_no_other_file_measures_by_the_clock_on_the_wall():
    root = Path(gentok.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if looks_at_the_wall(path.read_text())}
    assert found <= ALLOWED, found


@pytest.mark.parametrize("source", ["time.time()", "x = datetime.now()", "time.time_ns() - 3"])
def test_such_a_file_would_be_found(source):
    assert looks_at_the_wall(f"import time\n{source}\n") and not looks_at_the_wall("import time\ntime.monotonic()\n")
