"""Disks that are full: a real one where this process may mount it, and one that ends within a file that is written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, in memory, at `folder`. Skips the test where it cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("a file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """`left` bytes are free on the disk meanwhile."""
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, free(folder) - left)))
    try:
        yield
    finally:
        filler.unlink()


class Ending:
    """`open`, of a disk that takes `left` more bytes; each file that is opened for writing counts against them."""

    def __init__(self, left: int):
        self.left = left

    def __call__(self, path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = open(path, mode, *args, **options)  # noqa: SIM115 handed on
        return _Writing(file, self) if "w" in mode or "a" in mode else file


class _Writing:
    def __init__(self, file: Any, disk: Ending):
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        self.disk.left -= len(memoryview(data).cast("B")) if not isinstance(data, str) else len(data)
        if self.disk.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
