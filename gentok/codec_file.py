"""The .gtk file of `gentok.codec`: a sound as entropy-coded codes, written and read part by part.

    GTK1, length of the header (uint32), header (JSON), then per part: frames (uint32), bytes (uint32), bytes;
    at the end a part of no frame. Numbers are little-endian. The bytes are those of gentok/entropy.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from gentok.entropy import AdaptiveCoder, bits_of

__all__ = ["CodecReader", "CodecWriter"]

MAGIC = b"GTK1"


class CodecWriter:
    """Writes a .gtk file.

    Args:
        file: open for writing.
        header: plain JSON.
        vocab_sizes: V of each level.

    Attributes:
        frames: written so far.
        size: bytes of the parts so far.
        plain_bits: what the same ids would take stored one by one.
    """

    def __init__(self, file: BinaryIO, header: Mapping[str, Any], vocab_sizes: Sequence[int]):
        self.file, self.coder = file, AdaptiveCoder(vocab_sizes)
        self.frames, self.size, self.plain_bits = 0, 0, 0
        text = json.dumps(header).encode()
        file.write(MAGIC + struct.pack("<I", len(text)) + text)

    def write(self, codes: np.ndarray) -> None:
        """Adds a part: codes int64 [K, n]; of no frame, nothing is written."""
        frames = codes.shape[1]
        if not frames:
            return
        data = self.coder.encode(codes)
        self.file.write(struct.pack("<II", frames, len(data)) + data)
        self.frames, self.size = self.frames + frames, self.size + len(data) + 8
        self.plain_bits += frames * sum(map(bits_of, self.coder.vocab_sizes))

    def finish(self) -> None:
        """Marks the end, without which a reader takes the file for one that is cut short."""
        self.file.write(struct.pack("<II", 0, 0))


class CodecReader:
    """Reads a .gtk file.

    Args:
        file: open for reading.
        name: of the file, for messages.

    Attributes:
        header: what the writer was given.

    Raises:
        ValueError: the file is no .gtk file, or its header is not whole.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{name} is no file of gentok.codec compress")
        try:
            (length,) = struct.unpack("<I", file.read(4))
            self.header: dict[str, Any] = json.loads(file.read(length))
        except (struct.error, ValueError) as error:
            raise ValueError(f"{name} is cut short: its header is not whole") from error

    def parts(self, vocab_sizes: Sequence[int]) -> Iterator[np.ndarray]:
        """The codes int64 [K, n] of every part. Raises ValueError where the file is cut short or damaged."""
        coder = AdaptiveCoder(vocab_sizes)
        while True:
            head = self.file.read(8)
            if len(head) < 8:
                raise ValueError(f"{self.name} is cut short: its last part is missing")
            frames, size = struct.unpack("<II", head)
            if not frames:
                return
            data = self.file.read(size)
            if len(data) < size:
                raise ValueError(f"{self.name} is cut short in the middle of a part")
            try:
                yield coder.decode(data, frames)
            except ValueError as error:
                raise ValueError(f"{self.name} is damaged: {error}") from error
