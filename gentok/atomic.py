"""Files written whole or not at all: under a temporary name beside the target, then renamed over it.

A kill at any moment leaves the last good file, and at most a temporary one. That of `whole_file` (.NAME.HOST.PID.part) is removed by
the next writer of the same target once its process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing", "whole_file", "writable_folder"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[Path]:
    """`with replacing(path) as temporary:` write the file `temporary`; it takes the place of `path` if nothing was raised.

    Args:
        path: the file to write; its folder is made where it is missing.
        temporary: another file of the same folder; None: one with the suffix of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.stem}.{os.getpid()}.writing{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """`with whole_file(path) as file: file.write(...)`: as `replacing`, and flushed to the disk.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = writable_folder(Path(path).parent) / Path(path).name
    host = re.sub(r"\W", "-", platform.node())
    _sweep(path, host)
    temporary = path.with_name(f".{path.name}.{host}.{os.getpid()}.part")
    try:
        with replacing(path, temporary), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _readable(path, error) from error
    _sync_folder(path.parent)


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing.

    Raises:
        OSError: it cannot be made, or nothing can be written in it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be made ({error.strerror or error}): choose another with paths.cache") from error
    if not os.access(folder, os.W_OK):
        raise OSError(f"the folder {folder} cannot be written: choose another with paths.cache")
    return folder


def _readable(path: Path, error: OSError) -> OSError:
    if error.errno is None:  # already a line
        return error
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free some space, or choose another disk with paths.cache" if full else "see to its folder, or choose another with paths.cache"
    return OSError(f"{path} could not be written ({error.strerror or error}): {advice}; what was there before is as it was")


def _sweep(path: Path, host: str) -> None:
    """Removes what killed writers of `path` on this machine left behind."""
    mark = re.compile(re.escape(f".{path.name}.{host}.") + r"(\d+)\.part")
    for left in path.parent.glob(f".{_literal(path.name)}.*.part"):
        found = mark.fullmatch(left.name)
        if found and int(found[1]) != os.getpid() and not _alive(int(found[1])):
            left.unlink(missing_ok=True)


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question but an interrupt
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a loss of power; not every file system knows this."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
