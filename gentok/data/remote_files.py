"""Encoded sets behind a url: `paths.cache=s3://bucket/cache`. They are read as copies on this machine, which are mapped into memory.

A batch of tokens is some hundred bytes from each of as many places of a file. Requests for these would take longer than the training step
that uses them, and a token file is small (a byte or two per token), so it is copied once: whole or not at all, once per machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentok.atomic import whole_file, writable_folder
from gentok.data.progress import progress
from gentok.data.tar_index import is_url
from gentok.errors import FormatError

__all__ = ["cache_folder", "fetched", "named_copy", "store"]

_BLOCK = 1 << 22
_log = logging.getLogger("gentok.data")


def cache_folder(place: str | os.PathLike[str]) -> Path:
    """The folder of this machine that stands for `paths.cache`.

    Args:
        place: a folder, which is taken as it is, or a url, of which copies lie below $XDG_CACHE_HOME (~/.cache).
    """
    if not is_url(os.fspath(place)):
        return Path(place)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "gentok" / "copies" / hashlib.sha256(os.fspath(place).encode()).hexdigest()[:16]


def fetched(place: str | os.PathLike[str], name: str) -> bool:
    """Copies a file of a cache behind a url to this machine, unless it is here. Processes of one machine wait for the first.

    Args:
        place: `paths.cache`.
        name: of the file.

    Returns:
        Whether it is here.

    Raises:
        OSError: it cannot be read, or not be written here.
    """
    path = cache_folder(place) / name
    if path.is_file() or not is_url(os.fspath(place)):
        return path.is_file()
    url = f"{os.fspath(place).rstrip('/')}/{name}"
    with _alone(path):
        if path.is_file():  # another process has been quicker
            return True
        with _named(url, "read"):
            system, there = _system(url)
            if not system.exists(there):
                return False
            size = int(system.size(there) or 0)
        with whole_file(path, "XDG_CACHE_HOME") as file, progress("copying", size, "bytes") as advance:
            for data in _blocks(url, system, there):
                file.write(data)
                advance(len(data))
    return True


@contextlib.contextmanager
def named_copy(place: str | os.PathLike[str], name: str) -> Iterator[None]:
    """`with named_copy(place, name): ...` what is wrong with a copy names also what it is one of, where that is not deleted with it."""
    try:
        yield
    except FormatError as error:
        if not is_url(os.fspath(place)):
            raise
        raise FormatError(f"{error} (a copy of {os.fspath(place).rstrip('/')}/{name}, which may be damaged too)") from error


def store(place: str | os.PathLike[str], name: str) -> None:
    """Copies a file that was made on this machine into a cache behind a url; nothing where `paths.cache` is a folder.

    Args:
        place: `paths.cache`.
        name: of the file.

    What cannot be written there, as by http, is said and stays on this machine.
    """
    if not is_url(os.fspath(place)):
        return
    url = f"{os.fspath(place).rstrip('/')}/{name}"
    try:
        with _named(url, "written"):
            system, there = _system(url)
            system.makedirs(there.rpartition("/")[0], exist_ok=True)
            system.put_file(str(cache_folder(place) / name), there)  # object stores show a file when it is complete
    except OSError as error:
        _log.warning("%s; the run goes on with the copy of this machine", error)


def _blocks(url: str, system: Any, there: str) -> Iterator[bytes]:
    with _named(url, "read"), system.open(there, "rb") as source:
        while data := source.read(_BLOCK):
            yield data


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(url)


@contextlib.contextmanager
def _named(url: str, what: str) -> Iterator[None]:
    """Errors of reading or writing there as a line; every file system has errors of its own."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"paths.cache: {url} cannot be {what} ({reason}): see to the address and your rights, or name a folder") from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the system frees the lock of a killed one."""
    with open(writable_folder(path.parent, "XDG_CACHE_HOME") / f".{path.name}.lock", "a+") as file:
        with contextlib.suppress(ImportError, OSError):  # Windows, and some file systems
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
