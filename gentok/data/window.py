"""A part of a binary file as a file of its own."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

__all__ = ["window"]


def window(file: BinaryIO, start: int, length: int, head: bytes = b"") -> BinaryIO:
    """A part of a file, to be read while nothing else reads the file.

    Args:
        file: a binary file that can seek; it stays open.
        start: where the part begins.
        length: its bytes.
        head: further bytes before it.

    Returns:
        A binary file that can seek.
    """
    return io.BufferedReader(_Window(file, start, length, head))


class _Window(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, length: int, head: bytes):
        self.file, self.start, self.head, self.place = file, start, head, 0
        self.end = len(head) + length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, self.end)[whence])
        return self.place

    def readinto(self, buffer: Any) -> int:
        if self.place < len(self.head):
            data = self.head[self.place : self.place + len(buffer)]
        else:
            self.file.seek(self.start + self.place - len(self.head))
            data = self.file.read(max(0, min(len(buffer), self.end - self.place)))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
