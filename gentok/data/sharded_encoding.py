"""Several processes encode one set: each its share, the first joins them, all go on when the file is there.

The processes meet in the folder of the file and need no process group, which often does not exist yet when a set is encoded:
    1. who finds the file returns at once;
    2. every process encodes its share, unless a killed run has left it, and writes its name into a file as a sign of life meanwhile;
    3. process 0 waits for all shares and joins them; the others wait for the file;
    4. who waits gives up, with a one-line error, when a process of this machine is gone, or when nothing new has been seen of the others
       for `patience` seconds.
The folder must be one that all of them see.

A trainer calls `encode_together(..., rank=rank, world=world)` with the numbers that its launcher has given to the processes *running now*
(torchrun, SLURM: the environment's), and rank=0, world=1 where the other processes are started later, as Lightning does by itself.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gentok.atomic import is_gone
from gentok.data.token_cache import alive_path, encode_set, join, share_path, sign_of_life

__all__ = ["encode_together"]

_POLL = 0.2


def encode_together(
    tokenizer: Any, data: Any, path: str | os.PathLike[str], *, rank: int = 0, world: int = 1, patience: float = 600.0, **options: Any
) -> Path:
    """Encodes a set by all processes, each of which calls this, unless the file is there.

    Args:
        tokenizer, data, path, options: those of encode_set.
        rank: of this process.
        world: number of processes.
        patience: seconds after which processes without a sign of life are given up.

    Returns:
        `path`.

    Raises:
        OSError: another process of this machine is gone.
        TimeoutError: the other processes show no sign of life.
        ValueError, OSError: those of encode_set and join.
    """
    path = Path(path)
    if path.is_file():
        return path
    if world == 1:
        return encode_set(tokenizer, data, path, **options)
    own = share_path(path, rank, world)
    if not own.is_file():
        encode_set(tokenizer, data, path, rank=rank, world=world, **options)
    if rank == 0:
        _wait([share_path(path, r, world) for r in range(world)], path, rank, world, patience)
        join(path, world)
    else:
        _wait([path], path, rank, world, patience)
    for r in range(world) if rank == 0 else [rank]:
        alive_path(path, r, world).unlink(missing_ok=True)
    return path


def _wait(wanted: list[Path], path: Path, rank: int, world: int, patience: float) -> None:
    """Until all of `wanted` are there. Signs of life are changes, so that no two clocks are compared."""
    seen, since, at_work, job = None, time.monotonic(), set[str](), sign_of_life().partition("\n")[2]
    with suppress(OSError):  # once: what waits must not look like work to the others
        alive_path(path, rank, world).write_text(sign_of_life())
    while missing := [p for p in wanted if not p.exists()]:
        for r in range(world):
            name, _, its = _read(alive_path(path, r, world)).partition("\n")
            gone = is_gone(name)
            needed = not share_path(path, r, world).exists() or (r == 0 and not path.exists())  # the first one joins the shares
            # a sign that an earlier run has left is of another job, and was not seen while its process lived
            if gone and needed and (its == job or name in at_work) and not path.exists():
                raise OSError(
                    f"process {r} of {world} is gone, which encoded its share of {path.name}: its own output, or the system's log, says "
                    "why; the next start uses the shares that are there"
                )
            if name and not gone:
                at_work.add(name)
        signs = [_changed(f(path, r, world)) for r in range(world) for f in (share_path, alive_path) if r != rank]
        if signs != seen:
            seen, since = signs, time.monotonic()
        if time.monotonic() - since > patience:
            raise TimeoutError(
                f"waited {patience:.0f} s without a sign of the other processes for {', '.join(p.name for p in missing)} in {path.parent}: "
                "one of them has stopped (see its output), or paths.cache is not a folder that all processes see"
            )
        time.sleep(_POLL)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
