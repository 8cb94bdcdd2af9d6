"""The .gtk file of `gentok.codec`: a sound as entropy-coded codes, written and read part by part.

GTK2, length of the header (uint32), header (JSON, sealed), then per part: frames (uint32), bytes (uint32), bytes,
CRC-32 of all that is before it (uint32); at the end a part of no frame. Numbers are little-endian. The bytes are
those of gentok/entropy.py. GTK1, of earlier versions, has neither seal nor CRC; it is read, never written.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from gentok.entropy import AdaptiveCoder, bits_of
from gentok.errors import FormatError
from gentok.types.documents import LIMIT, check_seal, parse, seal

__all__ = ["CodecReader", "CodecWriter"]

MAGIC, OLD_MAGIC = b"GTK2", b"GTK1"


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
        self.file, self.coder, self._sum = file, AdaptiveCoder(vocab_sizes), 0
        self.frames, self.size, self.plain_bits = 0, 0, 0
        text = json.dumps(seal(header)).encode()
        self._put(MAGIC + struct.pack("<I", len(text)) + text)

    def _put(self, data: bytes) -> None:
        self._sum = zlib.crc32(data, self._sum)
        self.file.write(data)

    def _part(self, frames: int, data: bytes) -> None:
        self._put(struct.pack("<II", frames, len(data)) + data)
        self._put(struct.pack("<I", self._sum))

    def write(self, codes: np.ndarray) -> None:
        """Adds a part: codes int64 [K, n]; of no frame, nothing is written."""
        frames = codes.shape[1]
        if not frames:
            return
        data = self.coder.encode(codes)
        self._part(frames, data)
        self.frames, self.size = self.frames + frames, self.size + len(data) + 12
        self.plain_bits += frames * sum(map(bits_of, self.coder.vocab_sizes))

    def finish(self) -> None:
        """Marks the end, without which a reader takes the file for one that is cut short."""
        self._part(0, b"")


class CodecReader:
    """Reads a .gtk file.

    Args:
        file: a regular file, open for reading.
        name: of the file, for messages.

    Attributes:
        header: what the writer was given.

    Raises:
        FormatError: the file is no .gtk file, or its header is damaged.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name, self._sum = file, name, 0
        self._left = os.fstat(file.fileno()).st_size
        magic = self._take(4, "its first bytes are missing")
        if magic not in (MAGIC, OLD_MAGIC):
            raise FormatError(f"{name} is no file of gentok.codec compress")
        (length,) = struct.unpack("<I", self._take(4, "its header is not whole"))
        self.header = parse(self._take(min(length, LIMIT + 1), "its header is not whole"), f"the header of {name}")
        self._checked = magic == MAGIC
        if self._checked or "checksum" in self.header:
            check_seal(self.header, f"the header of {name}")

    def _take(self, size: int, missing: str) -> bytes:
        """The next bytes. What the file does not have is not asked for."""
        if size > self._left:
            raise FormatError(f"{self.name} is cut short: {missing}")
        data = self.file.read(size)
        self._left, self._sum = self._left - len(data), zlib.crc32(data, self._sum)
        return data

    def parts(self, vocab_sizes: Sequence[int], most: int) -> Iterator[np.ndarray]:
        """The codes int64 [K, n] of every part.

        Args:
            vocab_sizes: V of each level.
            most: frames that all of them may have.

        Raises:
            FormatError: the file is cut short or damaged.
        """
        coder = AdaptiveCoder(vocab_sizes)
        while True:
            frames, size = struct.unpack("<II", self._take(8, "its last part is missing"))
            data, expected = self._take(size, "it ends in the middle of a part"), self._sum
            if self._checked and struct.unpack("<I", self._take(4, "it ends in the middle of a part"))[0] != expected:
                raise FormatError(f"{self.name} is damaged: a checksum in it differs")
            if not frames:
                if self._checked and (size or self._left):
                    raise FormatError(f"{self.name} is damaged: something lies behind its end")
                return
            most -= frames
            if most < 0:
                raise FormatError(f"{self.name} is damaged: it has more frames than its header has samples")
            try:
                yield coder.decode(data, frames)
            except ValueError as error:
                raise FormatError(f"{self.name} is damaged: {error}") from error
