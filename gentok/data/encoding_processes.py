"""A set encoded by several processes of this machine that are started for it: where `trainer.devices=N` would start its own only later.

Each encodes a share, as those that torchrun starts do (gentok/data/sharded_encoding.py), and the shares are joined here. Data sets and
tokenizers that cannot be sent to another process, such as those of a class of a notebook, are encoded by this one.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gentok.data.token_cache import encode_set, join, share_path

__all__ = ["MANY", "encode_by_processes"]

MANY = 20_000
"""Items from which on it is worth the ten seconds that processes take to start."""


def encode_by_processes(tokenizer: Any, data: Any, path: Path, devices: Sequence[str], **options: Any) -> Path:
    """Encodes a set, a process for each device.

    Args:
        tokenizer: in eval mode, on the CPU.
        data, path: those of encode_set.
        devices: such as ["cuda:0", "cuda:1"], or "cpu" as often as there are to be processes.
        options: further ones of encode_set.

    Returns:
        `path`.

    Raises:
        ValueError, OSError: those of encode_set; or a process was killed.
    """
    world, context = len(devices), torch.multiprocessing.get_context("spawn")
    said, processes = context.SimpleQueue(), []
    try:
        with _without_main():
            for rank, device in enumerate(devices):
                work = (tokenizer, data, path, rank, world, device, said, options)
                processes.append(context.Process(target=_share, args=work, daemon=True))
                processes[-1].start()
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        _end(processes)
        return encode_set(tokenizer.to(devices[0]), data, path, device=devices[0], **options)
    try:
        running = {process.sentinel: (rank, process) for rank, process in enumerate(processes)}
        while running:
            for sentinel in wait(list(running)):
                rank, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise _failure(rank, world, process.exitcode, said)
    finally:
        _end(processes)
    return join(path, world)


def _share(
    tokenizer: Any, data: Any, path: Path, rank: int, world: int, device: str, said: Any, options: dict[str, Any]
) -> None:  # fmt: skip
    """One process's."""
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        if not share_path(path, rank, world).is_file():  # which a killed run has left
            encode_set(tokenizer.to(device), data, path, rank=rank, world=world, device=device, **options)
    except (ValueError, OSError) as error:
        said.put((isinstance(error, OSError), " ".join(str(error).split())))
        sys.exit(2)


def _failure(rank: int, world: int, status: int, said: Any) -> Exception:
    if not said.empty():
        is_os, message = said.get()
        return OSError(message) if is_os else ValueError(message)
    how = f"was killed by signal {-status}, often for want of memory" if status < 0 else "has failed; its output says why"
    return OSError(f"process {rank} of {world} that encoded the set {how}: the next start uses the shares that are there")


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """The new processes do not run the program again that started this one, which may have no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
