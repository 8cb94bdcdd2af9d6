"""Files written whole or not at all: under a temporary name beside the target, then renamed over it.

A kill at any moment leaves the last good file, and at most a temporary one, which `sweep` removes once its process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "is_gone", "named_errors", "own_process", "replacing", "save_tensors", "sweep", "sync", "unfinished", "whole_file", "writable_folder",
]  # fmt: skip


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], temporary: Path | None = None, setting: str = "") -> Iterator[Path]:
    """`with replacing(path) as temporary:` write the file `temporary`; it takes the place of `path` if nothing was raised.

    Args:
        path: the file to write; its folder is made where it is missing. A link stays a link, to the new file. What is no plain file, such
            as /dev/null or a pipe, is written to and stays what it is.
        temporary: another file of the same folder; None: one with the suffix of `path`, which says the format to libraries.
        setting: what chooses the folder, for messages.

    Raises:
        OSError: the folder cannot be written, the disk is full, or `path` is a folder.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"{path.stem or 'out'}{path.suffix}"
            yield temporary
            with named_errors(path, setting), open(temporary, "rb") as made, open(path, "wb") as device:
                shutil.copyfileobj(made, device)
        return
    writable_folder(path.parent, setting)
    temporary = temporary or path.with_name(f".{path.stem}.{os.getpid()}.writing{path.suffix}")
    try:
        with named_errors(path, setting):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Any], path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that may be read by whoever may read this process's other files: the library's own are its user's alone.

    Args:
        tensors: of torch, contiguous.
        path: of the file, which is not there or may be replaced.
        metadata: of its header.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.touch()  # with the permissions that this process gives to what it writes
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], setting: str = "") -> Iterator[BinaryIO]:
    """`with whole_file(path) as file: file.write(...)`: as `replacing`, open for writing, and flushed to the disk."""
    path = Path(os.path.realpath(path))
    sweep(writable_folder(path.parent, setting))
    with replacing(path, unfinished(path), setting) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def unfinished(path: Path, kind: str = "") -> Path:
    """The file or folder beside `path` in which this process alone prepares it; of a killed one `sweep` removes it.

    Args:
        path: what is prepared.
        kind: tells several of them apart.
    """
    return path.with_name(f".{path.name}{kind}.{_host()}.{os.getpid()}.part")


def writable_folder(folder: str | os.PathLike[str], setting: str = "") -> Path:
    """The folder, made where it is missing. setting: what chooses it, for messages.

    Raises:
        OSError: it cannot be made, or nothing can be written in it.
    """
    folder, another = Path(folder), _another(setting)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be made ({error.strerror or error}): {another}") from error
    if not os.access(folder, os.W_OK):
        raise OSError(f"the folder {folder} cannot be written: {another}")
    return folder


def _another(setting: str) -> str:
    return f"choose another with {setting}" if setting else "choose another"


@contextlib.contextmanager
def named_errors(path: Path, setting: str = "") -> Iterator[None]:
    """Errors of the system as a line that names the file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # already a line
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = ("free some space, or " if full else "see to its folder, or ") + _another(setting)
        raise OSError(f"{path} could not be written ({error.strerror or error}): {advice}; what was there before is as it was") from error


def sweep(folder: Path) -> None:
    """Removes what killed writers on this machine left behind in a folder."""
    mark = re.compile(r"\..+\." + rf"(?:{re.escape(_host())}\.(\d+)\.part|(\d+)\.writing(?:\.\w+)?)")
    for left in (*folder.glob(".*.part"), *folder.glob(".*.writing*")):
        found = mark.fullmatch(left.name)
        process = int(found[1] or found[2]) if found else os.getpid()
        if process != os.getpid() and not _alive(process):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def own_process() -> str:
    """A name for this process that `is_gone` knows, on this machine and others."""
    return f"{_host()} {os.getpid()}"


def is_gone(name: str) -> bool:
    """Whether a process of this machine, named by `own_process`, has ended; of other machines' nothing is known."""
    host, _, process = name.partition(" ")
    return host == _host() and process.isdigit() and not _alive(int(process))


def _host() -> str:
    return re.sub(r"\W", "-", platform.node())


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


def sync(path: Path) -> None:
    """So that a file, or the names in a folder, outlive a loss of power; not every file system knows this."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
