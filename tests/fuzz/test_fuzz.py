"""A small campaign over every kind of input, and a judge that sees what it is there for. `make fuzz` is the long one."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from fuzz_engine import Mutation, Target, run
from fuzz_targets import TARGETS

FEW = {"resume": 2, "compressed_sound": 8}
SLOW = ("command_line",)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and measures memory by /proc")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TARGETS])
def test_damaged_inputs_are_refused_in_a_line_or_change_nothing(name, tmp_path):
    report = run(TARGETS[name], tmp_path / "scratch", FEW.get(name, 16), seed=1_000_000)
    assert not report.violations, json.dumps(report.violations[:3], indent=1)
    assert sum(report.counts.values()) == FEW.get(name, 16)


def made(folder: Path) -> Path:
    (folder / "good").write_text("good")
    return folder / "good"


def allocate(path: Path) -> str:
    return str(len(bytearray(8 << 30)))


BAD_USES = {
    "KeyError": lambda path, out: {}[path.read_text()],
    "silent": lambda path, out: path.read_text(),
    "message": lambda path, out: int("") if path.read_text() == "bad" and not (_ for _ in ()).throw(ValueError("no")) else 0,
    "hang": lambda path, out: path.read_text() == "bad" and time.sleep(30),
    "death": lambda path, out: path.read_text() == "bad" and os._exit(3),
    "memory": lambda path, out: path.read_text() == "bad" and allocate(path),
    "effect": lambda path, out: path.read_text() == "bad" and (out.parents[1] / "elsewhere").write_text(""),
}


@pytest.mark.parametrize("kind", BAD_USES)
def test_the_judge_sees(kind, tmp_path):
    def use(path, out):
        return "good" if path.read_text() == "good" else BAD_USES[kind](path, out)

    def mutate(rng, path):
        path.write_text("bad")
        return Mutation("made bad")

    report = run(Target("bad", made, mutate, use, seconds=0.2), tmp_path / "scratch", 2)
    assert [v["kind"] for v in report.violations] == [kind] * 2 and not report.counts["refused"]


def test_the_judge_sees_a_connection_and_accepts_what_is_right(tmp_path):
    def use(path, out):
        if path.read_text() == "call":
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        if path.read_text() == "refuse":
            raise ValueError("this is a line that says what is wrong")
        return "good"

    def mutate(rng, path):
        word = rng.choice(["call", "refuse", "same"])
        path.write_text(word)
        return Mutation(word)

    report = run(Target("calls", made, mutate, use), tmp_path / "scratch", 30)
    assert {v["what"] for v in report.violations} == {"call"} and {v["kind"] for v in report.violations} == {"effect"}
    assert report.counts["equal"] and report.counts["refused"] and sum(report.counts.values()) == 30
