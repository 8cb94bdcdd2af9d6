"""Damaged and hostile inputs by the thousand: what is done with each, and whether that is right.

A `Target` makes one good input, damages copies of it, and uses each copy as a user would. Right outcomes are
    equal      the copy is accepted, and gives what the good input gives
    other      it is accepted and gives something else, where the damage was a legal change (`Mutation.legal`)
    refused    a ValueError, OSError or ImportError with one line, which the command line prints
Everything else is a violation: another exception, another result in silence, more time or memory than the good input needs, a file outside
of the output folder, a connection, a death of the process.

Imports are paid once: copies are used in forked processes, a batch in each, one after the other. Mutant i of a target depends on
(target, seed + i) alone, so `python tests/fuzz only=NAME seed=S n=1` repeats one.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFUSALS = (ValueError, OSError, ImportError)
"""What gentok.cli prints as one line."""
BATCH = 64
SLACK = 400 << 20  # bytes of address space beside what the good input needs twice
_WRITING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree", "os.truncate", "os.chmod"}
_OWN = ("__pycache__", "/matplotlib", "/torch_")  # caches of libraries
_OUTSIDE = {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}


@dataclass(frozen=True)
class Mutation:
    """What was done to a copy. legal: it may be accepted with another result than the good input's."""

    what: str
    legal: bool = False


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: of the kind.
        make: (an empty folder) -> the good input in it, a file or a folder. Called once.
        mutate: (random numbers, a copy of the good input) -> what was done to the copy, in place.
        use: (an input, an empty folder for output, which is the working directory) -> what it gives, anything that compares.
        seconds: of processor time that a copy may take.
    """

    name: str
    make: Callable[[Path], Path]
    mutate: Callable[[random.Random, Path], Mutation]
    use: Callable[[Path, Path], Any]
    seconds: float = 10.0


@dataclass
class Report:
    """Counts of outcomes, and every violation: {"seed", "kind", "what", "detail"}."""

    target: str
    counts: Counter = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "seconds": round(self.seconds, 1), "violations": self.violations}


def run(target: Target, scratch: Path, n: int, seed: int = 0) -> Report:
    """`n` copies of the target's input, of the seeds from `seed` on; `scratch` is a folder of this call alone."""
    began, report = time.monotonic(), Report(target.name)
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "good").mkdir(parents=True)
    with _quiet():
        good = target.make(scratch / "good")
        _used(target, good, scratch / "first")  # imports
        before = _peak()
        expected = _used(target, good, scratch / "first")
    honest = max(0, _peak() - before)
    at, end = seed, seed + n
    while at < end:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            receiver.close()
            _work(target, good, scratch, expected, honest, range(at, min(at + BATCH, end)), sender)
        sender.close()
        at = _collect(target, receiver, pid, at, min(at + BATCH, end), report)
    report.seconds = time.monotonic() - began
    return report


def _collect(target: Target, receiver: Any, pid: int, at: int, end: int, report: Report) -> int:
    """Takes the outcomes of one process; the first seed that it has not come to."""
    what = ""
    while at < end:
        try:
            if not _answers(receiver, pid, target.seconds):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                _violation(report, at, "hang", what, f"more than {target.seconds:g} s")
                return at + 1
            message = receiver.recv()
        except EOFError:
            _, status = os.waitpid(pid, 0)
            _violation(report, at, "death", what, f"status {status}")
            return at + 1
        if "mutation" in message:
            what = message["mutation"]
            continue
        report.counts[message["outcome"]] += 1
        if message["outcome"] == "violation":
            report.violations.append({"seed": at, "kind": message["kind"], "what": what, "detail": message["detail"]})
        at += 1
    os.waitpid(pid, 0)
    return at


def _answers(receiver: Any, pid: int, seconds: float) -> bool:
    """Whether something comes before the process has worked for `seconds`, or has slept ten times as long: others may use the machine."""
    before, began = _worked(pid), time.monotonic()
    while not receiver.poll(min(0.5, seconds / 2)):
        if _worked(pid) - before > seconds or time.monotonic() - began > 10 * seconds:
            return False
    return True


def _worked(pid: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _violation(report: Report, seed: int, kind: str, what: str, detail: str) -> None:
    report.counts["violation"] += 1
    report.violations.append({"seed": seed, "kind": kind, "what": what, "detail": detail})


def _work(target: Target, good: Path, scratch: Path, expected: Any, honest: int, seeds: Iterable[int], sender: Any) -> None:
    """The forked process; never returns."""
    effects: list[str] = []
    inside = str(scratch.resolve())
    sys.addaudithook(lambda event, args: _note(event, args, inside, effects))
    limit = _address_space() + 2 * honest + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with _quiet():
            for seed in seeds:
                copy = scratch / "copy" / good.name
                shutil.rmtree(copy.parent, ignore_errors=True)
                copy.parent.mkdir()
                (shutil.copytree if good.is_dir() else shutil.copyfile)(good, copy)
                mutation = target.mutate(random.Random(f"{target.name}/{seed}"), copy)
                sender.send({"mutation": mutation.what})
                effects.clear()
                sender.send(judge(target, copy, scratch / "out", expected, mutation, effects))
    except BaseException:  # of this harness or of a target's own code
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def judge(target: Target, copy: Path, out: Path, expected: Any, mutation: Mutation, effects: list[str]) -> dict[str, Any]:
    """The outcome of using one copy: {"outcome"}, of a violation also {"kind", "detail"}."""

    def violation(kind: str, detail: str) -> dict[str, Any]:
        return {"outcome": "violation", "kind": kind, "detail": detail[:2000]}

    try:
        found = _used(target, copy, out)
    except REFUSALS as error:
        line = " ".join(str(error).split())
        if effects:
            return violation("effect", "; ".join(effects))
        if "allocate" in line or "out of memory" in line.lower():
            return violation("memory", line)
        return {"outcome": "refused"} if 10 <= len(line) <= 1500 else violation("message", line)
    except MemoryError as error:
        return violation("memory", _where(error))
    except BaseException as error:
        memory = "allocate memory" in str(error) or "Cannot allocate" in str(error)
        return violation("memory" if memory else type(error).__name__, _where(error))
    if effects:
        return violation("effect", "; ".join(effects))
    if found == expected:
        return {"outcome": "equal"}
    return {"outcome": "other"} if mutation.legal else violation("silent", "accepted, with another result")


def _used(target: Target, path: Path, out: Path) -> Any:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    before = os.getcwd()
    os.chdir(out)
    try:
        return target.use(path, out)
    finally:
        os.chdir(before)


def _where(error: BaseException) -> str:
    """The error and the innermost places of the package that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/gentok/" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} [{places}]"


def _note(event: str, args: tuple, inside: str, effects: list[str]) -> None:
    if event in _OUTSIDE:
        effects.append(f"{event} {args[:2]}")
    elif event == "open" and isinstance(args[0], (str, bytes)) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _note_path(event, args[0], inside, effects)
    elif event in _WRITING:
        handle = next((a for a in args[1:] if isinstance(a, int) and a > 2), None) if event in ("os.remove", "os.rmdir") else None
        base = "" if handle is None else os.readlink(f"/proc/self/fd/{handle}")
        for path in (a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))):
            _note_path(event, os.path.join(base, os.fsdecode(path)), inside, effects)


def _note_path(event: str, path: Any, inside: str, effects: list[str]) -> None:
    full = os.path.realpath(os.fsdecode(path))
    if not full.startswith((inside, "/dev/", "/proc/")) and not any(word in full for word in _OWN):
        effects.append(f"{event} {full}")


@contextlib.contextmanager
def _quiet() -> Any:
    """What is printed is of no interest."""
    import logging
    import warnings

    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                logging.disable(logging.NOTSET)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def write_report(reports: list[Report], path: Path, **about: Any) -> None:
    """All reports as one JSON file."""
    total = sum((r.counts for r in reports), Counter())
    document = {**about, "total": dict(total), "targets": {r.target: r.to_dict() for r in reports}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
