"""Processes that are killed, for reliability.py: one of two that work together, and one again and again until its run has ended.

What was counted is written down after every kill, so that a measurement that was stopped goes on where it was (`keep=FOLDER`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability_jobs import GENERATOR, PATIENCE, TOKENIZER, Job, contents, slow_checkpoints, slow_drawing, slow_encoding, wait_for, weights

STEPS = 60
Counted = Callable[[dict[str, Any]], None]


class Notes:
    """What a measurement has counted so far, in a file of its folder.

    Args:
        path: of the file.
        counted: is told after every kill.
    """

    def __init__(self, path: Path, counted: Counted):
        self.path, self.counted = path, counted
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def write(self, **values: Any) -> None:
        self.values |= values
        temporary = self.path.with_suffix(".writing")
        temporary.write_text(json.dumps(self.values))
        os.replace(temporary, self.path)


class Phase:
    """What a job of two processes is doing when one of them is killed.

    Args:
        job: folder -> the job.
        begun: folder -> whether it does it.
        spread: seconds, the longest time from then to the kill.
        result: folder -> a hash of all that the job makes.
    """

    def __init__(self, job: Callable[[Path], Job], begun: Callable[[Path], bool], spread: float, result: Callable[[Path], str]):
        self.job, self.begun, self.spread, self.result = job, begun, spread, result


def phases(root: Path) -> dict[str, Phase]:
    tokenizer = root / "tokenizer"
    if not (tokenizer / "bundle").is_dir():
        Job("train", [*TOKENIZER, "steps=2", f"paths.run={tokenizer}", "overwrite=true"], tokenizer, ranks=1).run()

    def training(folder: Path) -> Job:
        words = [*TOKENIZER, "trainer=ddp_sim", f"steps={STEPS}", "trainer.checkpoint_every=5", f"paths.run={folder}", "resume=auto"]
        return Job("train", words, folder, prepare=slow_checkpoints)

    def caching(folder: Path) -> Job:
        words = [*GENERATOR, "trainer=ddp_sim", "steps=4", f"tokenizer.ckpt={tokenizer / 'bundle'}", f"paths.run={folder}"]
        return Job("train", [*words, f"paths.cache={folder}_cache", "resume=auto"], folder, prepare=slow_encoding)

    def sampling(folder: Path) -> Job:
        words = ["ckpt=mnist5k_masked", "sampler=maskgit", "sampler.steps=2", "n=48", "batch_size=4", f"out={folder}", "trainer=ddp_sim"]
        return Job("sample", words, folder, prepare=slow_drawing)

    def writes(folder: Path) -> bool:
        return any((folder / "checkpoints").glob(".*.writing.ckpt"))

    def encoded(folder: Path) -> str:
        return weights(folder) + contents(Path(f"{folder}_cache"))

    return {
        "training": Phase(training, lambda folder: (folder / "metrics.csv").is_file(), 1.0, weights),
        "caching": Phase(caching, lambda folder: any(Path(f"{folder}_cache").glob(".*.alive")), 4.0, encoded),
        "checkpointing": Phase(training, writes, 0.2, weights),
        "sampling": Phase(sampling, lambda folder: any(folder.glob(".unfinished/*.safetensors")), 0.6, contents),
    }


def ranks(root: Path, kills: int, seed: int, counted: Counted) -> None:
    """kill -9 of a random one of two processes, at random moments of all phases in turn."""
    notes, wanted = Notes(root / "ranks.json", counted), phases(root)
    found = {"kills": 0, "longest_seconds": 0.0, "in_one_line": 0, "tracebacks": 0, "later_than_a_minute": 0, "different": 0,
             **{f"kills_while_{name}": 0 for name in wanted}, **notes.values.get("found", {})}  # fmt: skip
    at, undisturbed = notes.values.get("at", 0), notes.values.get("undisturbed", {})
    while found["kills"] < kills:
        name = list(wanted)[at % len(wanted)]
        phase, folder, draw = wanted[name], root / f"{name}_{at}", random.Random(f"{seed} {at}")
        remove(root, folder.name)  # of a measurement that was stopped in the middle
        if name not in undisturbed:
            whole = root / f"{name}_whole"
            remove(root, whole.name)
            phase.job(whole).run()
            undisturbed[name] = phase.result(whole)
            remove(root, whole.name)
        at += 1
        job, rank = phase.job(folder).start(), draw.randrange(2)
        if not wait_for(lambda phase=phase, folder=folder: phase.begun(folder), job):
            job.wait()
            continue
        time.sleep(draw.random() * phase.spread)
        if len(job.living()) < 2:  # it has ended before
            job.wait()
            continue
        job.kill(rank)
        took = job.wait(PATIENCE)
        said, traceback = job.said([1 - rank])
        done = job.statuses[1 - rank] == 0  # the other one had nothing left to do
        if traceback or not (done or len(said) == 1):
            job.log(1 - rank).rename(root / f"surprise_{at}.log")  # to look at
        job.run()  # the same command again
        found["kills"] += 1
        found["longest_seconds"] = max(found["longest_seconds"], round(took, 2))
        found["later_than_a_minute"] += took > PATIENCE
        found["in_one_line"] += len(said) == 1 or done
        found["tracebacks"] += traceback
        found["different"] += phase.result(folder) != undisturbed[name]
        found[f"kills_while_{name}"] += 1
        remove(root, folder.name)
        notes.write(at=at, undisturbed=undisturbed, found=found)
        counted(found)
        print(f"{found['kills']} of {kills}: {name}, process {rank}, {took:.1f} s, {found['different']} different: {said}", flush=True)


def kills(root: Path, count: int, seed: int, counted: Counted) -> None:
    """kill -9 of one process at random moments of runs that go on each time: every fourth before the start has written a checkpoint,
    the others up to half a second after one. The run without a kill is a whole command."""
    notes = Notes(root / "kills.json", counted)
    found = {"kills": 0, "runs": 0, "different": 0, "unreadable_checkpoints": 0, "kills_before_a_checkpoint": 0,
             "kills_within_a_checkpoint": 0, **notes.values.get("found", {})}  # fmt: skip
    common = [*TOKENIZER, "steps=150", "trainer.checkpoint_every=3", "resume=auto"]
    if "wanted" not in notes.values:
        remove(root, "alone_whole")
        Job("train", [*common, f"paths.run={root / 'alone_whole'}"], root / "alone_whole", ranks=1).run()
        notes.write(wanted=result(root / "alone_whole"))
    start_seconds = 3.0
    while found["kills"] < count or (root / f"alone_{found['runs']}").is_dir():
        folder = root / f"alone_{found['runs']}"  # where it is there: goes on
        last = folder / "checkpoints" / "last.ckpt"
        job = Job("train", [*common, f"paths.run={folder}"], folder, ranks=1, prepare=slow_checkpoints, at_once=True)
        while found["kills"] < count:
            draw, early = random.Random(f"{seed} {found['kills']}"), found["kills"] % 4 == 3
            before, began, cut = written(last), time.monotonic(), unfinished(last)
            job.start()
            if early:
                time.sleep(draw.random() * start_seconds)
            elif wait_for(lambda last=last, before=before: written(last) != before, job):
                start_seconds = time.monotonic() - began
                time.sleep(draw.random() * 0.5)
            if not job.living():  # it has come to its end
                break
            job.kill(0)
            job.wait()
            found["kills"] += 1
            found["kills_before_a_checkpoint"] += written(last) == before
            found["kills_within_a_checkpoint"] += bool(unfinished(last) - cut)
            try:
                weights(folder) if written(last) else None
            except Exception:
                found["unreadable_checkpoints"] += 1
            notes.write(found=found)
            counted(found)
        job.run()
        found["different"] += result(folder) != notes.values["wanted"]
        found["runs"] += 1
        remove(root, folder.name)
        notes.write(found=found)
        counted(found)
        print(f"{found['kills']} of {count} kills, {found['runs']} runs ended, {found['different']} different", flush=True)


def written(path: Path) -> int:
    """When a file was written, 0 where it is not there."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def unfinished(path: Path) -> set[str]:
    """Names of the files beside a checkpoint that were begun."""
    return {begun.name for begun in path.parent.glob(".*.writing.ckpt")}


def result(run: Path) -> str:
    """A hash of a run's last checkpoint and of its bundle."""
    return weights(run) + contents(run / "bundle")


def remove(root: Path, name: str) -> None:
    """A job's folders and logs."""
    for path in (root / name, root / f"{name}_cache"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(f"{name}.*.log"):
        path.unlink()
