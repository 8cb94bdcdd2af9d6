"""An open sound file, decoded from any sample on: what libsndfile leaves to those who use it.

A length in a header is a claim. Writers that could not seek back leave a placeholder, an MP3 file without a Xing frame states none, and a
file that is cut short still states the whole. So nothing is allocated by such a length, samples are counted by decoding where the header
does not say, and a file with fewer samples than it states is refused.

A part is what that part of the whole is. Some formats cannot seek; they are decoded from their beginning. MP3, Vorbis and Opus depend on
what comes before a sample; they are decoded from so much earlier that nothing is left of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentok.data.names import encodable
from gentok.data.sound_headers import missing_bytes, mpeg_head, true_header
from gentok.data.window import window

__all__ = ["OpenSound", "soundfile_module"]

_BLOCK = 1 << 18
"""Frames that are decoded at once."""
_BEFORE = {"MPEG": 1 << 16, "OPUS": 1 << 16, "VORBIS": 1 << 18}
"""Frames before a part that are decoded with it. MP3: its bit reservoir, 511 bytes, of the lowest bit rates. Vorbis: libsndfile seeks
wrongly into the last page of a file, of 255 packets at most."""
_SEEKING = {"AIFF", "AU", "CAF", "FLAC", "MP3", "NIST", "OGG", "RF64", "W64", "WAV", "WAVEX"}
"""Formats in which libsndfile seeks right; PAF and SDS lose a sample."""
_FRAMES_PER_BYTE = 64
"""More than this only silence has; such a length is checked by decoding."""
_screen = threading.Lock()
if hasattr(os, "register_at_fork"):  # not everywhere
    os.register_at_fork(after_in_child=_screen._at_fork_reinit)


def soundfile_module() -> Any:
    """The package soundfile. Raises ImportError with the pip command."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"sound files are read by the package soundfile ({error}); run: pip install 'gentok[audio]'") from error
    return soundfile


class OpenSound:
    """A sound file that is open for reading; a context manager.

    Args:
        source: its path, its bytes, or a binary file that can seek.

    Attributes:
        rate: Hz.
        channels: of every frame.
        frames: samples of each channel according to the header; None where only decoding tells.

    Raises:
        ValueError, OSError, RuntimeError (of libsndfile): it cannot be read, or is cut short.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | BinaryIO):
        with contextlib.ExitStack() as stack:
            raw, opened = _raw(source, stack)
            end = raw.seek(0, 2)
            head, self._extra = true_header(raw, end), 0
            mpeg = None if head else mpeg_head(raw)
            if mpeg is not None:
                head, self._extra = mpeg[:2], mpeg[2]
            if head is not None:
                opened = window(raw, head[1], end - head[1], head[0])
            with _silent(_may_be_mpeg(raw)):
                self._file = stack.enter_context(soundfile_module().SoundFile(opened))
            place = raw.tell()  # libsndfile reads on from there, where it reads this very file
            lost = missing_bytes(raw, self._file)
            raw.seek(place)
            if lost:
                raise ValueError(f"it is cut short: {lost[1]:,} of {lost[0]:,} {lost[2]} are there")
            self._closing = stack.pop_all()
        file = self._file
        self.rate, self.channels = file.samplerate, file.channels
        self._codec = file.subtype.split("_")[0]
        self._seeks = file.seekable() and self._codec != "DWVW" and file.format in _SEEKING and file.frames < 1 << 36
        estimated = self._codec == "MPEG" and (mpeg is not None or file.subtype != "MPEG_LAYER_III" or file.format != "MP3")
        self.frames = None if estimated or file.frames >= 1 << 36 else file.frames
        self._likely = file.frames <= _FRAMES_PER_BYTE * end
        file._info.seekable = 0  # else soundfile seeks behind every block, which some formats answer with an error

    def __enter__(self) -> OpenSound:
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.close()

    def length(self) -> int:
        """How many frames there are, counted by decoding where the header does not say so or is hard to believe.

        Raises:
            ValueError: there are fewer than the header says.
        """
        if self.frames is not None and self._likely:
            return self.frames
        count = max(0, sum(block.shape[1] for block in self._blocks(None)) - self._extra)
        self._check(count)
        return count

    def read(self, first: int, last: int | None) -> Tensor:
        """float32 [channels, last - first]: the frames from `first` on, to the end where `last` is None.

        Fewer where the sound ends before `last` and its header does not say where. To be called once.

        Raises:
            ValueError: there are fewer than the header says, or they are no numbers.
        """
        first, last = first + self._extra, None if last is None else last + self._extra
        place = max(0, first - _BEFORE.get(self._codec, 0)) if self._seeks else 0
        if self._seeks:  # also to 0, after which mpg123 rounds as after other seeks
            self._file.seek(place)
        parts = []
        for block in self._blocks(None if last is None else last - place):
            parts.append(block[:, max(0, first - place) :])
            place += block.shape[1]
        if last is None or place < last:
            self._check(place)
        out = torch.cat(parts, 1) if parts else torch.zeros(self.channels, 0)
        if not bool(out.isfinite().all()):
            raise ValueError("some of its samples are no numbers")
        return out

    def _blocks(self, frames: int | None) -> Iterator[Tensor]:
        """float32 [channels, n] each: the next `frames` frames, or all."""
        while frames is None or frames > 0:
            with _silent(self._codec == "MPEG"):
                block = self._file.read(_BLOCK if frames is None else min(_BLOCK, frames), dtype="float32", always_2d=True)
            if not len(block):
                return
            yield torch.from_numpy(block.T.copy())
            frames = None if frames is None else frames - len(block)

    def _check(self, count: int) -> None:
        if self.frames is not None and count < self.frames:
            raise ValueError(f"it is cut short: {count:,} of {self.frames:,} samples are there")


def _raw(source: Any, stack: contextlib.ExitStack) -> tuple[BinaryIO, Any]:
    """The binary file, and what libsndfile opens: a path where there is one, which it reads faster."""
    if isinstance(source, bytes):
        raw: BinaryIO = io.BytesIO(source)
        return raw, raw
    if not isinstance(source, (str, os.PathLike)):
        return source, source
    if not Path(source).is_file():
        raise FileNotFoundError("there is no such file")
    name = os.fspath(source)
    return stack.enter_context(open(source, "rb")), name if name == encodable(name) else os.fsencode(name)


def _may_be_mpeg(raw: BinaryIO) -> bool:
    raw.seek(0)
    start = raw.read(3)
    raw.seek(0)
    return start == b"ID3" or start[:1] == b"\xff"


@contextlib.contextmanager
def _silent(mpeg: bool) -> Iterator[None]:
    """mpg123 writes to the process's stderr, past Python, of every frame whose predecessors it was not given, and of odd headers."""
    if not mpeg:
        yield
        return
    with _screen:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
