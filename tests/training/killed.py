"""Real processes that are killed; run by test_killed.py as a script.

    python killed.py FOLDER COMMAND...

Imports everything once and forks: a forked child is a process of its own, which SIGKILL ends as it ends any other. Commands:

    moments N SEED     N children that write a checkpoint after every step, each killed at a random moment behind the one before
    term               SIGTERM to a child in the middle of its training
    resume NAME...     cases of resume_kit: a child is killed -9 in the middle; another resumes it; a third one runs without a kill
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning  # noqa: F401 - once for all processes
import torch
from resume_kit import CASES, SMALL, configured, different, last, state
from slow_disk import slow_disk

from gentok.bundle import load
from gentok.training.resume import read
from gentok.training.run import train


def child(work: Callable[[], object], log: Path) -> int:
    """Forks a process that does `work`, and returns its id. Its output goes to `log`, its exit status is train.py's."""
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    status = 0
    try:
        work()
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:  # the child must not go on with its parent's program
        print(repr(error), flush=True)
        status = 99
    sys.stdout.flush()
    os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(condition: Callable[[], bool], pid: int, what: str, log: Path) -> None:
    for _ in range(120_000):
        if condition():
            return
        if os.waitpid(pid, os.WNOHANG)[0]:
            sys.exit(f"the child ended before {what}: {log.read_text()}")
        time.sleep(0.01)
    sys.exit(f"no {what} within twenty minutes")


def moments(root: Path, count: int, seed: int) -> dict:
    """Every kill falls into a run that resumes what the one before left."""
    draw, loaded, cut = random.Random(seed), [], 0
    words = [*SMALL, "trainer.checkpoint_every=1", "steps=1000000", "trainer.validate_every=1000000", "resume=auto"]
    run, log = root / "moments", root / "moments.log"
    path = run / "checkpoints" / "last.ckpt"
    for _ in range(count):
        before = path.stat().st_mtime_ns if path.exists() else 0
        pid = child(lambda: (slow_disk(), train(configured(root, "moments", words))), log)
        wait_for(lambda before=before: path.exists() and path.stat().st_mtime_ns != before, pid, "a checkpoint", log)
        time.sleep(draw.random() * 0.4)
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        cut += len(list(path.parent.glob(".*.writing.ckpt")))
        loaded.append(int(read(path)["global_step"]))
        load(path)  # as sample.py does
    return {"steps": loaded, "cut": cut}


def term(root: Path) -> dict:
    words = [*SMALL, "trainer.checkpoint_every=1000000", "steps=1000000", "trainer.validate_every=1000000"]
    run, log = root / "term", root / "term.log"
    pid = child(lambda: train(configured(root, "term", words)), log)
    wait_for(lambda: (run / "metrics.csv").exists(), pid, "a step", log)
    os.kill(pid, signal.SIGTERM)
    status = status_of(pid)
    step = int(read(run / "checkpoints" / "last.ckpt")["global_step"])
    again = status_of(child(lambda: train(configured(root, "term", SMALL, "resume=auto", f"steps={step + 2}")), log))
    return {"status": status, "said": log.read_text().splitlines(), "step": step, "again": again, "end": last(run)["global_step"]}


def resume(root: Path, names: list[str]) -> dict:
    out = {}
    for name in names:
        words, folder = CASES[name], name.replace(" ", "_")
        log = root / f"{folder}.log"
        path = root / f"{folder}_killed" / "checkpoints" / "last.ckpt"
        pid = child(lambda words=words, folder=folder: train(configured(root, folder + "_killed", words)), log)
        wait_for(path.exists, pid, "a checkpoint", log)
        os.kill(pid, signal.SIGKILL)
        killed = status_of(pid)
        ends = [
            status_of(child(lambda words=words, folder=folder: train(configured(root, folder + "_killed", words, "resume=auto")), log)),
            status_of(child(lambda words=words, folder=folder: train(configured(root, folder, words)), log)),
        ]
        assert ends == [0, 0], log.read_text()
        out[name] = {"killed": killed, "different": different(state(root / folder), state(root / f"{folder}_killed"))}
    return out


def main() -> None:
    torch.set_num_threads(1)
    root, commands = Path(sys.argv[1]), " ".join(sys.argv[2:]).split(" + ")
    out: dict = {}
    for command in commands:
        word, _, rest = command.partition(" ")
        if word == "moments":
            count, seed = rest.split()
            out["moments"] = moments(root, int(count), int(seed))
        elif word == "term":
            out["term"] = term(root)
        else:
            names = rest.split(", ")
            if any("task.views" in word for name in names for word in CASES[name]):  # generators, of its tokens
                tokenizer = status_of(child(lambda: train(configured(root, "tokenizer", SMALL)), root / "tokenizer.log"))
                assert tokenizer == 0, (root / "tokenizer.log").read_text()
            out["resume"] = resume(root, names)
    (root / "out.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
