"""Makes reliability.md and reliability.json: processes that are killed, full caches, memory that stays flat, files that are broken.

    python docs/results/reliability.py [only=ranks,kills,stall,efficiency,memory,pictures] [rank_kills=40] [process_kills=100]
                                       [tokens=10000000] [steps=2000] [pictures=10000] [seed=0]

    python docs/results/reliability.py page              only writes the page anew

Every figure says how many were tried. Figures of time (stall, efficiency) want a machine that does nothing else.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence import ROOT, Store, figures
from reliability_jobs import GENERATOR, PATIENCE, TOKENIZER, Job, contents, slow_checkpoints, slow_drawing, slow_encoding, wait_for, weights
from reliability_machine import efficiency, memory_of_steps, memory_of_tokens, stall
from reliability_page import write_page

STEPS = 60


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
        Job("train", [*TOKENIZER, "steps=2", f"paths.run={tokenizer}"], tokenizer, ranks=1).run()

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


def ranks(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """kill -9 of a random one of two processes, at random moments of all phases in turn."""
    draw, wanted, at, count = random.Random(seed), phases(root), 0, 0
    undisturbed: dict[str, str] = {}
    seconds, lines, tracebacks, late, different, by_phase = [], 0, 0, 0, 0, dict.fromkeys(wanted, 0)
    while count < kills:
        name = list(wanted)[at % len(wanted)]
        phase, folder = wanted[name], root / f"{name}_{at}"
        at += 1
        if name not in undisturbed:
            whole = root / f"{name}_whole"
            phase.job(whole).run()
            undisturbed[name] = phase.result(whole)
        job = phase.job(folder).start()
        if not wait_for(lambda phase=phase, folder=folder: phase.begun(folder), job):
            job.wait()
            continue
        time.sleep(draw.random() * phase.spread)
        rank = draw.randrange(2)
        if len(job.living()) < 2:  # it has ended before
            job.wait()
            continue
        job.kill(rank)
        took = job.wait(PATIENCE)
        said, traceback = job.said([1 - rank])
        done = job.statuses[1 - rank] == 0  # the other one had nothing left to do
        seconds.append(took)
        late += took > PATIENCE
        lines += len(said) == 1 or done
        tracebacks += traceback
        job.run()  # the same command again
        different += phase.result(folder) != undisturbed[name]
        count += 1
        by_phase[name] += 1
        print(f"{count} of {kills}: {name}, process {rank}, {took:.1f} s: {said}", flush=True)
    return {"kills": count, "longest_seconds": round(max(seconds), 2), "in_one_line": lines, "tracebacks": tracebacks,
            "later_than_a_minute": late, "different": different, **{f"kills_while_{name}": n for name, n in by_phase.items()}}  # fmt: skip


def kills(root: Path, count: int, seed: int) -> dict[str, Any]:
    """kill -9 of one process at random moments of runs that go on each time."""
    draw, done, runs, different, unreadable = random.Random(seed), 0, 0, 0, 0
    common = [*TOKENIZER, "steps=150", "trainer.checkpoint_every=3", "resume=auto"]
    whole = root / "alone_whole"
    Job("train", [*common, f"paths.run={whole}"], whole, ranks=1).run()
    wanted = weights(whole)
    while done < count:
        folder = root / f"alone_{runs}"
        job = Job("train", [*common, f"paths.run={folder}"], folder, ranks=1, prepare=slow_checkpoints)
        while done < count:
            last = folder / "checkpoints" / "last.ckpt"
            before = last.stat().st_mtime_ns if last.is_file() else 0
            job.start()
            if not wait_for(lambda last=last, before=before: last.is_file() and last.stat().st_mtime_ns != before, job):
                break
            time.sleep(draw.random() * 0.5)
            if not job.living():
                break
            job.kill(0)
            job.wait()
            done += 1
            try:
                weights(folder)
            except Exception:
                unreadable += 1
        job.run()
        different += weights(folder) != wanted
        runs += 1
        print(f"{done} of {count} kills, {runs} runs ended, {different} different", flush=True)
    return {"kills": done, "runs": runs, "different": different, "unreadable_checkpoints": unreadable}


def pictures(root: Path, count: int) -> dict[str, Any]:
    """A folder of which 3 % are broken in ten ways, trained on to the end, every picture at least once."""
    sys.path[:0] = [str(ROOT / "tests" / "faults")]
    from reliability_jobs import found_by

    def work() -> dict[str, Any]:
        from ten_ways import BROKEN, LEFT_OUT
        from test_ten_ways import trained

        skipped, made = trained(root, count, count * 3 // 100, -(-count // 10), 10)
        wanted = {kind: sum(len(made[way]) for way in ways) for kind, ways in (("broken", BROKEN), ("no_files", LEFT_OUT))}
        named = {**skipped["reasons"], **skipped["left_out_reasons"]}
        wrong = set(named) - {str(path) for way in (*BROKEN, *LEFT_OUT) for path in made[way]}
        return {"files": count, "broken": wanted["broken"], "said_to_be_broken": skipped["count"], "no_files": wanted["no_files"],
                "said_to_be_left_out": skipped["left_out"], "named": len(named), "named_wrongly": len(wrong)}  # fmt: skip

    return found_by(work, root, "pictures")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    seed = int(given.get("seed", 0))
    numbers = {"rank_kills": 40, "process_kills": 100, "tokens": 10_000_000, "steps": 2000, "pictures": 10_000}
    numbers |= {key: int(given[key]) for key in numbers if key in given}
    items: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
        "ranks": ("rank_kills", lambda root: ranks(root, numbers["rank_kills"], seed)),
        "kills": ("process_kills", lambda root: kills(root, numbers["process_kills"], seed)),
        "stall": ("", stall),
        "efficiency": ("", efficiency),
        "memory": ("tokens", lambda root: {**memory_of_tokens(root, numbers["tokens"]), **memory_of_steps(root, numbers["steps"])}),
        "pictures": ("pictures", lambda root: pictures(root, numbers["pictures"])),
    }
    store = Store("reliability")
    for item in [] if words == ["page"] else given.get("only", ",".join(items)).split(","):
        if item not in items:
            sys.exit(f"only={item}: choose from {', '.join(items)}")
        number, measure = items[item]
        asked = [f"{name}={numbers[name]}" for name in ((number, "steps") if item == "memory" else (number,)) if name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder))
        how = " ".join(["python docs/results/reliability.py", f"only={item}", *asked, f"seed={seed}"])
        store.add(figures(item, found, how, seed, time.monotonic() - began))
        print(f"{item}: {found}", flush=True)
    write_page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
