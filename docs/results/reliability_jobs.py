"""Jobs of one or two real processes, which reliability.py kills: forked from one process that has imported everything, each through the
entry that its user would start, with nobody over them who would end the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  for the processes that are forked
import torch

import gentok.cli
import gentok.sample_files
import gentok.training.run  # noqa: F401

TINY = ["trainer=cpu", "trainer.precision=32-true", "print_config=false", "trainer.progress_bar=false", "logger.tensorboard=false",
        "trainer.validate_every=100000", "budget=null", "batch_size=16", "data=noise", "data.items=512", "data.held_out=16",
        "data.size=8", "data.channels=1"]  # fmt: skip
TOKENIZER = [*TINY, "task=tokenizer", "codebook=vq_ema", "losses=l2", "task.pictures=1", "task.augment.shift=0", "tokenizer.width=4",
             "codebook.vocab_size=16", "codebook.dim=4"]  # fmt: skip
GENERATOR = [*TINY, "task=generator", "tokenizer=from_bundle", "generator=autoregressive", "task.pictures=10", "task.views=2",
             "task.encode_batch=16", "generator.width=16", "generator.depth=1", "generator.heads=1"]  # fmt: skip
"""Small models; without an experiment, whose other parts Hydra would have to compose three more times at every start."""
PATIENCE = 60.0
"""Seconds within which a job must have ended after one of its processes was killed."""


def forked(work: Callable[[], Any], log: Path, **environment: str) -> int:
    """The id of a child that does `work`, with its output in `log` and train.py's exit status."""
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(environment)
    status = 0
    try:
        work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def command(name: str, words: Sequence[str], prepare: Callable[[], Any]) -> Callable[[], None]:
    """What a process does that its user has started as `python NAME.py WORDS`, after `prepare`."""

    def work() -> None:
        sys.argv = [f"{name}.py", *words]
        sys.orig_argv = [sys.executable, *sys.argv]
        prepare()
        getattr(gentok.cli, name)()

    return work


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return gentok.cli.compose("config", list(words))


def training(words: Sequence[str], prepare: Callable[[], Any]) -> Callable[[], None]:
    """What such a process does behind its command line, which is composed once for all that are started with these words: most of the time
    until a small run begins."""
    config = _composed(tuple(words))

    def work() -> None:
        prepare()
        gentok.training.run.train(config)  # the child's own copy

    return work


@dataclass
class Job:
    """Processes that do one command together.

    Attributes:
        name: train or sample.
        words: of its command line.
        folder: of its output.
        ranks: processes.
        prepare: what each of them does first, such as to slow something down.
        at_once: whether a training begins with a command line that is composed already.
    """

    name: str
    words: Sequence[str]
    folder: Path
    ranks: int = 2
    prepare: Callable[[], Any] = lambda: None
    at_once: bool = False
    pids: list[int] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def start(self) -> Job:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.pids, self.statuses = [], {}
        work = training(self.words, self.prepare) if self.at_once else command(self.name, self.words, self.prepare)
        for rank in range(self.ranks):
            self.log(rank).unlink(missing_ok=True)
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ranks),
                   "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "job"}  # fmt: skip
            self.pids.append(forked(work, self.log(rank), **(own if self.ranks > 1 else {})))
        return self

    def log(self, rank: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{rank}.log")

    def living(self) -> list[int]:
        """Ranks of the processes that have not ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(self.ranks) if rank not in self.statuses]

    def kill(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self, seconds: float = 3600.0) -> float:
        """Until all have ended, or for so long; then they are killed. Returns the seconds that it took."""
        began = time.monotonic()
        while self.living():
            if time.monotonic() - began > seconds:
                for rank in self.living():
                    self.kill(rank)
            time.sleep(0.02)
        return time.monotonic() - began

    def run(self) -> None:
        """From its start to its end, as `finish`."""
        self.start().finish()

    def finish(self) -> None:
        """Waits for its end. Raises RuntimeError with its output where it failed."""
        self.wait()
        if any(self.statuses.values()):
            raise RuntimeError("\n".join(self.log(rank).read_text()[-3000:] for rank in range(self.ranks)))

    def said(self, ranks: Sequence[int]) -> tuple[list[str], bool]:
        """(lines for the person at the keyboard, whether there was a traceback) of these processes."""
        text = "\n".join(self.log(rank).read_text() for rank in ranks)
        return [line for line in text.splitlines() if line.startswith("gentok:")], "Traceback" in text


def slow_checkpoints() -> None:
    """From now on a checkpoint takes so long to be written that a kill can fall into it."""
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / "training")]
    from slow_disk import slow_disk

    slow_disk()


def slow_encoding() -> None:
    """From now on a batch takes 0.3 s more to encode."""
    import gentok.data.token_cache as cache

    quick = cache._encode_batch
    cache._encode_batch = lambda *args: (time.sleep(0.3), quick(*args))[1]


def slow_drawing() -> None:
    """From now on a part of the samples takes 0.2 s more to draw."""
    from gentok.sampling_plan import SamplingPlan

    quick = SamplingPlan.draw
    SamplingPlan.draw = lambda *args: (time.sleep(0.2), quick(*args))[1]


def wait_for(condition: Callable[[], bool], job: Job) -> bool:
    """Until it holds; False where the job has ended before."""
    while not condition():
        if len(job.living()) < job.ranks:
            return False
        time.sleep(0.002)
    return True


def weights(run: Path) -> str:
    """A hash of all numbers of a run's last checkpoint: weights, averages, optimizer."""
    content, digest = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True), hashlib.sha256()

    def add(part: Any, where: str) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{where} {part.dtype} {tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                add(part[key], f"{where}.{key}")
        elif isinstance(part, (list, tuple)):
            for i, one in enumerate(part):
                add(one, f"{where}.{i}")

    for name in ("state_dict", "optimizer_states", "callbacks", "global_step"):
        add(content.get(name), name)
    return digest.hexdigest()


def contents(folder: Path) -> str:
    """A hash of the files of samples, but for the report, which has seconds in it."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".png", ".safetensors"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def own_memory() -> int:
    """Bytes of this process that no file stands behind."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def found_by(work: Callable[[], Any], root: Path, name: str) -> Any:
    """What `work` finds in a forked child, as JSON has it. Raises RuntimeError with its output where it failed."""
    out, log = root / f"{name}.json", root / f"{name}.log"
    status = os.waitstatus_to_exitcode(os.waitpid(forked(lambda: out.write_text(json.dumps(work())), log), 0)[1])
    if status:
        raise RuntimeError(log.read_text()[-3000:])
    return json.loads(out.read_text())
