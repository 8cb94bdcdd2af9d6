"""One process at a time writes into a folder. The system frees the lock of a killed one, and loader workers do not inherit it (POSIX)."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentok.errors import ConfigError

__all__ = ["folder_lock"]

_LOCK = ".lock"
_held: set[Path] = set()  # by this process, to which the system gives a lock twice


@contextlib.contextmanager
def folder_lock(folder: Path, does: str, setting: str) -> Iterator[None]:
    """`with folder_lock(...):` this process alone writes in the folder, which is made where it is missing.

    Args:
        folder: which one.
        does: what the other one does there, for the message: "another run trains in".
        setting: what chooses the folder, for the message.

    Raises:
        ConfigError: another process, or another thread of this one, writes in it.
        OSError: it cannot be written; as the system says it.
    """
    folder = folder.resolve()
    taken = f"{does} {folder} ({{}}): wait for it, or choose another folder with {setting}"
    if folder in _held:
        raise ConfigError(taken.format("of this process"))
    path, file = folder / _LOCK, None
    folder.mkdir(parents=True, exist_ok=True)
    while file is None or not _same(file, path):  # one that has just ended takes its file away
        file = open(path, "a+")  # noqa: SIM115 closed below
        if not _taken(file):
            file.seek(0)
            holder = file.read(200).strip()
            file.close()
            raise ConfigError(taken.format(holder))
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        _held.add(folder)
        try:
            yield
        finally:
            _held.discard(folder)
            path.unlink(missing_ok=True)


def _taken(file: Any) -> bool:
    """Takes the lock; whether that went well, which it also does where there are no locks."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):  # Windows, and some file systems
        pass
    return True


def _same(file: Any, path: Path) -> bool:
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
