"""Folders of pictures of which some are broken, in ten ways; a process for which permissions count also where it is root's."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN = ("truncated", "empty", "text", "wrong extension", "zero size", "broken chunk", "no permission")
"""They count as broken."""
LEFT_OUT = ("folder", "dangling link")
"""They are no files."""
READ = ("16 bits",)
"""Odd, and a picture all the same."""
WAYS = (*BROKEN, *LEFT_OUT, *READ)


def _png(seed: int, size: int = 8, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 65536, (size, size)).astype(np.uint16) if mode == "16" else random.integers(0, 256, (size, size, 3))
    Image.fromarray(pixels if mode == "16" else pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _zero_size(png: bytes) -> bytes:
    """A header that says 0 x 8, with the checksum of that."""
    header = b"IHDR" + struct.pack(">II", 0, 8) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def _broken_chunk(png: bytes) -> bytes:
    at = png.index(b"IDAT") + 10
    return png[:at] + bytes(b ^ 0x55 for b in png[at : at + 40]) + png[at + 40 :]


CONTENT: dict[str, Callable[[int], bytes]] = {
    "truncated": lambda seed: _png(seed)[:120],
    "empty": lambda seed: b"",
    "text": lambda seed: b"this is no picture\n" * 9,
    "wrong extension": lambda seed: b"RIFF$\x08\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00" + bytes(200),
    "zero size": lambda seed: _zero_size(_png(seed)),
    "broken chunk": lambda seed: _broken_chunk(_png(seed)),
    "no permission": _png,
    "16 bits": lambda seed: _png(seed, mode="16"),
}


def pictures(root: Path, good: int, broken: int) -> dict[str, list[Path]]:
    """`good` pictures of 8 x 8 in two classes, and `broken` others among them. Returns {way: its paths}."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for i in range(good):
        (root / ("cat", "dog")[i % 2] / f"{i:05d}.png").write_bytes(_png(i))
    made: dict[str, list[Path]] = {way: [] for way in WAYS}
    for i in range(broken):
        way = WAYS[i % len(WAYS)]
        path = root / ("cat", "dog")[i // 2 % 2] / f"{good + i:05d}_{way.replace(' ', '_')}.png"
        if way == "folder":
            path.mkdir()
        elif way == "dangling link":
            path.symlink_to(root / "nowhere.png")
        else:
            path.write_bytes(CONTENT[way](good + i))
        if way == "no permission":
            path.chmod(0)
        made[way].append(path)
    return made


@contextmanager
def permissions_count() -> Iterator[None]:
    """Root reads and writes everything by two capabilities, which this thread is without meanwhile."""
    if os.geteuid():
        yield
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before):
        raise OSError(ctypes.get_errno(), "capget")
    without[:] = before[:]
    without[0] &= ~0b110  # effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    if libc.capset(header, without):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)
