"""Headers of sound files whose writer could not seek back, and files that are cut short.

libsndfile reads what is there of a file and says nothing. Which is right for a WAV file that came through a pipe, whose header states a
placeholder instead of a length, and wrong for one that is cut short.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

__all__ = ["missing_bytes", "mpeg_head", "true_header"]

_PLACEHOLDERS = (0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000)
"""SoX (AIFF), SoX and espeak-ng, others, arecord; GStreamer leaves 0, ffmpeg and mpg123 2^32 - 1. Some round to whole frames."""


def _is_placeholder(size: int, wide: bool = False) -> bool:
    if wide:
        return size == 0 or size >= 1 << 62
    return size == 0 or size >= 0xFFFF0000 or any(abs(size - word) <= 4096 for word in _PLACEHOLDERS)


def true_header(file: BinaryIO, end: int) -> tuple[bytes, int] | None:
    """A header that states the length of what is there, for a file whose own states a placeholder.

    Args:
        file: a binary file that can seek.
        end: its length in bytes.

    Returns:
        The new beginning of the file, and how many bytes of it that replaces; None: it is right as it is.

    Raises:
        ValueError: the file is shorter than its header says.
    """
    file.seek(0)
    magic = file.read(4)
    if magic in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _riff(file, end, "big" if magic == b"RIFX" else "little")
    if magic == b"caff":
        return _caf(file, end)
    if magic in (b".snd", b"dns."):
        file.seek(8)
        size = file.read(4)
        if _is_placeholder(int.from_bytes(size, "big" if magic == b".snd" else "little")):
            file.seek(0)
            return file.read(8) + b"\xff\xff\xff\xff", 12
    return None


def missing_bytes(file: BinaryIO, sound: Any) -> tuple[int, int, str] | None:
    """How much there should be, how much there is, and of what, of a file that is cut short; else None.

    Args:
        file: the binary file.
        sound: the soundfile.SoundFile of it.
    """
    if sound.format in ("WAV", "WAVEX", "RF64"):
        return None  # _riff has looked
    if sound.format == "NIST":
        file.seek(0)
        count = re.search(rb"sample_count -i (\d+)", file.read(4096))
        return (int(count[1]), sound.frames, "samples") if count and int(count[1]) > sound.frames else None
    if sound.format == "OGG":
        return _cut_page(file)
    for claim, there in re.findall(r"(\d+) (?:\(should be|should be|<-->) (\d+)", sound.extra_info):
        if int(claim) > int(there) and not _is_placeholder(int(claim), wide=sound.format in ("W64", "CAF")):
            return int(claim), int(there), "bytes"
    return None


def _chunks(file: BinaryIO, place: int, end: int, order: Any, width: int = 4) -> Any:
    """(id, where its content begins, its size) of the chunks from `place` on, as far as anybody writes so many."""
    for _ in range(4096):
        if place + 4 + width > end:
            return
        file.seek(place)
        kind, size = file.read(4), int.from_bytes(file.read(width), order)
        yield kind, place + 4 + width, size
        place += 4 + width + size + (size % 2 if width == 4 else 0)


def _riff(file: BinaryIO, end: int, order: Any) -> tuple[bytes, int] | None:
    wide = None  # where the 64-bit sizes of RF64 stand
    for kind, body, size in _chunks(file, 12, end, order):
        if kind == b"ds64":
            wide = body
        if kind != b"data":
            continue
        there, claim, long = end - body, size, wide is not None and size == 0xFFFFFFFF
        if wide is not None and long:
            file.seek(wide + 8)
            claim = int.from_bytes(file.read(8), order)
        if 0 < claim <= there or (claim == 0 and _only_chunks(file, body, end, order)):
            return None
        if not _is_placeholder(claim, long):
            raise ValueError(f"it is cut short: {there:,} of {claim:,} bytes of samples are there")
        file.seek(0)
        head = bytearray(file.read(body))
        if wide is not None and long:
            head[wide : wide + 24] = (end - 8).to_bytes(8, order) + there.to_bytes(8, order) + bytes(8)
        else:
            head[body - 4 : body] = min(there, 0xFFFFFFFE).to_bytes(4, order)
        return bytes(head), body
    raise ValueError("it is cut short: it has no samples")


def _only_chunks(file: BinaryIO, place: int, end: int, order: Any) -> bool:
    """Whether what follows a data chunk of length 0 are further chunks, or nothing: then it is empty, and no placeholder."""
    last = place
    for kind, body, size in _chunks(file, place, end, order):
        if not (kind.isascii() and kind.decode("ascii").isprintable()):
            return False
        last = body + size
    return end - last in (-1, 0, 1)


def _caf(file: BinaryIO, end: int) -> tuple[bytes, int] | None:
    for kind, body, size in _chunks(file, 8, end, "big", width=8):
        if kind == b"data":
            empty = size in (0, 4) or size >= 1 << 62  # 4: the count of edits alone
            if not empty or end - body <= 4:
                return None
            file.seek(0)
            return file.read(body - 8) + (end - body).to_bytes(8, "big"), body
    return None


def _cut_page(file: BinaryIO) -> tuple[int, int, str] | None:
    """The last page of an Ogg file, where it is not all there."""
    end = file.seek(0, 2)
    start = max(0, end - 65536)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"OggS\0")
    if place < 0:
        return None
    segments = tail[place + 26] if place + 26 < len(tail) else 255
    page = 27 + segments + sum(tail[place + 27 : place + 27 + segments])
    return (start + place + page, end, "bytes") if place + page > len(tail) else None


def mpeg_head(file: BinaryIO) -> tuple[bytes, int, int] | None:
    """Of an MP3 file without a frame that states its length: such a frame, with more than there can be, to be put before the others.

    Without it the decoder estimates the length from the first frame's bit rate, and stops there. It drops the first 529 samples of a
    file with one; a silent frame is put before them.

    Args:
        file: a binary file that can seek.

    Returns:
        The new beginning of the file, how many bytes of it that replaces, and how many samples more there are then; None: the file states
        its length, or is no MP3 file.
    """
    end = file.seek(0, 2)
    start, head = 0, b"ID3"
    while head == b"ID3":  # tags before the first frame: their size is of four times 7 bits
        file.seek(start)
        tag = file.read(10)
        head = tag[:3] if len(tag) == 10 else b""
        if head == b"ID3":
            start += 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0))) + 10 * (tag[5] >> 4 & 1)
    file.seek(start)
    first = file.read(4096)
    if len(first) < 4 or first[0] != 0xFF or first[1] & 0xE6 != 0xE2 or first[2] >> 4 in (0, 15) or first[2] & 12 == 12:
        return None  # no frame of layer III
    stated = re.search(rb"(?:Xing|Info)...(.)", first, re.DOTALL)
    if stated and stated[1][0] & 1:
        return None
    newest, mono = first[1] & 8, first[3] >> 6 == 3  # MPEG 1, else 2 or 2.5
    rate = (44100, 48000, 32000)[first[2] >> 2 & 3] >> (0 if newest else 1 if first[1] & 16 else 2)
    length, samples = (144000 * 128 // rate, 1152) if newest else (72000 * 80 // rate, 576)  # both bit rates have the number 9
    side = (17 if mono else 32) if newest else (9 if mono else 17)
    silent = (bytes((0xFF, first[1] | 1, 0x90 | first[2] & 12, first[3])) + bytes(side)).ljust(length, b"\0")
    count = b"Xing" + (1).to_bytes(4, "big") + (end // 24 + 2).to_bytes(4, "big")
    return (silent[: 4 + side] + count).ljust(length, b"\0") + silent, start, samples - 529
