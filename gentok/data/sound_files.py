"""Sound files in and out: media float [C, T] in [-1, 1] <-> files of libsndfile's formats, or their bytes, at a rate of your choice.

Files are read and written by soundfile (libsndfile; see gentok.data.sound_decoding), resampled by torchaudio: a windowed sinc, cut off a
little below half of the lower rate. A part of a file is what that part of the whole file is: it is read with as much around it as the
filter sees.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentok.atomic import whole_file
from gentok.data.names import printable
from gentok.data.sound_decoding import OpenSound, soundfile_module

__all__ = [
    *("SOUND_SUFFIXES", "FullScale", "normalized", "part_step", "read_sound", "resample", "resampled_length", "save_sound", "sound_bytes"),
    "sound_size",
]

SOUND_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".wave", ".bwf", ".rf64", ".w64", ".mp2", ".mpga", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".sph", ".nist", ".voc", ".paf", ".pvf", ".svx", ".8svx", ".16svx", ".sf", ".ircam", ".avr", ".htk"),
    *(".sds", ".wve", ".xi"),
)
"""Of libsndfile's formats that have a header and a suffix of their own."""
_WIDTH, _ROLLOFF = 6, 0.99
"""torchaudio's filter: zero crossings on each side, and the cut-off as a share of half the lower rate."""
_TAPS = 20_000_000
"""The filter has about as many taps as the product of both rates over their common divisor: 70,560 from 44,100 to 16,000 Hz."""
PEAK, RMS, _GAIN = 0.95, 0.1, 100.0
"""What `normalized` brings sounds to, and how far it amplifies at most (40 dB): silence with a little noise stays that."""
_OVERSHOOT = 1.5
"""Decoders of lossy formats and resampling go beyond full scale, loud music by 3 dB."""
_log = logging.getLogger("gentok.data")


def sound_size(source: str | os.PathLike[str] | bytes | BinaryIO, name: str = "") -> tuple[int, int, int]:
    """How long a sound is: from its header, or by decoding it where that does not say.

    Args:
        source: the file's path, its bytes, or a binary file that can seek.
        name: what errors call the sound; by default its path.

    Returns:
        Samples of each channel, sample rate in Hz, channels.

    Raises:
        ValueError: it cannot be read, is shorter than its header says, or has no samples.
    """
    with _readable(source, name), OpenSound(source) as sound:
        samples = sound.length()
        if samples < 1:
            raise ValueError("it has no samples")
        return samples, sound.rate, sound.channels


def read_sound(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    sample_rate: int | None = None,
    channels: int | None = None,
    start: int = 0,
    samples: int | None = None,
    name: str = "",
) -> Tensor:
    """Reads a sound, or a part of one. Values are as stored: integers scaled to [-1, 1).

    Args:
        source: the file's path, its bytes, or a binary file that can seek.
        sample_rate: Hz of the result; the file's own by default.
        channels: of the result; the file's own by default. 1 mixes down (the mean), 2 doubles a mono sound.
        start: where the part begins, in samples of `sample_rate`: a multiple of part_step(the file's rate, sample_rate).
        samples: of the part, at most: it ends where the sound does. None: all.
        name: what errors call the sound; by default its path.

    Returns:
        Tensor: float32 [channels, T].

    Raises:
        ValueError: it cannot be read, is cut short, has other channels than can be mixed, or values that are not finite.
    """
    with _readable(source, name), OpenSound(source) as sound:
        rate, total = sound.rate, sound.frames
        wanted_rate = sample_rate or rate
        left, first, last = _span(rate, wanted_rate, start, samples, total)
        wave = sound.read(first if total is None else min(first, total), last)
        if last is None or first + wave.shape[1] < last:
            total = first + wave.shape[1]  # the end has been reached
        out = resample(_mixed(wave, channels), rate, wanted_rate)[:, left:]
    if total is not None:
        out = out[:, : max(0, resampled_length(total, rate, wanted_rate) - start)]
    return out[:, :samples].contiguous()


def part_step(rate: int, sample_rate: int) -> int:
    """Where parts of a resampled file may begin.

    Args:
        rate: of the file, in Hz.
        sample_rate: that it is resampled to, in Hz.

    Returns:
        int: samples of `sample_rate` after which a sample of `rate` falls on one again.
    """
    return sample_rate // math.gcd(rate, sample_rate)


class FullScale:
    """Clips sounds to [-1, 1], in whatever reads sounds for a model. What is far beyond was stored on another scale: that is said once.

    Processes that are forked from the one that made it say it once together.
    """

    def __init__(self) -> None:
        self._said = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def __call__(self, wave: Tensor, name: str) -> Tensor:
        """Clips a sound.

        Args:
            wave: float [C, T].
            name: of the sound, for the warning.

        Returns:
            Tensor: float [C, T] in [-1, 1].
        """
        peak = float(wave.abs().max()) if wave.numel() else 0.0
        if peak > _OVERSHOOT and not self._said[0]:
            self._said[0] = 1
            _log.warning(
                "%s reaches %.4g times full scale and is clipped to it, as are others like it: store samples in [-1, 1], or train with "
                "data.normalize=peak", name, peak,
            )  # fmt: skip
        return wave.clamp(-1, 1)


def _span(rate: int, sample_rate: int, start: int, samples: int | None, total: int | None) -> tuple[int, int, int | None]:
    """(samples of `sample_rate` to drop at the left, first and last + 1 sample of the file to read; None: its end)."""
    step = part_step(rate, sample_rate)
    if start % step or start < 0:
        raise ValueError(f"a part of a sound at {rate} Hz, read at {sample_rate} Hz, begins at a multiple of {step} samples; got {start}")
    period = rate // math.gcd(rate, sample_rate)  # samples of the file per `step`
    around = 0
    if step != period:
        around = math.ceil((math.ceil(_WIDTH * period / (min(period, step) * _ROLLOFF)) + 1) / period) + 1  # periods that the filter sees
    before = min(around, start // step)
    first = (start // step - before) * period
    last = total
    if samples is not None:
        last = (math.ceil((start + samples) / step) + around) * period
        last = last if total is None else min(total, last)
    return before * step, first, last


def _mixed(wave: Tensor, channels: int | None) -> Tensor:
    if channels is None or len(wave) == channels:
        return wave
    if channels == 1:
        return wave.mean(0, keepdim=True)
    if len(wave) == 1:
        return wave.expand(channels, -1)
    raise ValueError(f"it has {len(wave)} channels, from which {channels} cannot be made: set data.channels=1 to mix them down")


def resampled_length(length: int, rate: int, sample_rate: int) -> int:
    """How long a resampled sound is: its duration, rounded up.

    Args:
        length: samples at `rate`.
        rate: in Hz.
        sample_rate: of the result, in Hz.

    Returns:
        int: samples at `sample_rate`.
    """
    return -(-length * sample_rate // rate)


def resample(wave: Tensor, rate: int, sample_rate: int) -> Tensor:
    """Resamples a sound.

    Args:
        wave: float32 [..., T].
        rate: its rate in Hz.
        sample_rate: the rate of the result.

    Returns:
        Tensor: float32 [..., resampled_length(T, rate, sample_rate)].

    Raises:
        ImportError: torchaudio is missing; with the pip command.
        ValueError: the rates have so small a common divisor that the filter would not fit into memory.
    """
    if rate == sample_rate or not wave.shape[-1]:
        return wave
    step = math.gcd(rate, sample_rate)
    if (rate // step) * (sample_rate // step) > _TAPS:
        raise ValueError(f"sounds at {rate} Hz cannot be resampled to {sample_rate} Hz: a usual rate is expected, such as 44100")
    with torch.no_grad():
        return _resampler(rate, sample_rate)(wave)


@functools.lru_cache(32)
def _resampler(rate: int, sample_rate: int) -> Any:
    """With the filter's taps, which take longer to compute than a word to filter."""
    try:
        from torchaudio.transforms import Resample
    except ImportError as error:
        raise ImportError(f"resampling sound needs torchaudio ({error}); run: pip install 'gentok[audio]'") from error
    return Resample(rate, sample_rate, lowpass_filter_width=_WIDTH, rolloff=_ROLLOFF)


def normalized(wave: Tensor, how: str | None) -> Tensor:
    """Brings a sound to a common level. Amplifies 100 times (40 dB) at most; silence stays silence.

    Args:
        wave: float [C, T].
        how: "peak": its largest magnitude becomes 0.95; "rms": its root mean square becomes 0.1 (-20 dB), as far as its peaks leave room;
            None changes nothing.

    Returns:
        Tensor: float [C, T].

    Raises:
        ValueError: `how` is another word.
    """
    if how is None:
        return wave
    if how not in ("peak", "rms"):
        raise ValueError(f"data.normalize={how!r}: null, peak (largest magnitude at {PEAK}) or rms (root mean square at {RMS})")
    peak = wave.abs().max() if wave.numel() else wave.new_zeros(())
    if peak == 0:
        return wave
    gain = PEAK / peak
    if how == "rms":
        gain = torch.minimum(gain, RMS / wave.square().mean().sqrt().clamp(min=1e-12))
    return wave * gain.clamp(max=_GAIN)


def sound_bytes(media: Tensor, sample_rate: int, form: str = "wav", name: str = "the sound") -> bytes:
    """A sound as the bytes of a file; arguments as of `save_sound`, form: wav (of 16 bits) or another suffix, name: for the error."""
    sf = soundfile_module()
    media = media.detach().float().cpu()
    if media.dim() != 2 or not media.shape[1] or not bool(media.isfinite().all()):
        raise ValueError(f"{name}: a sound to be written is float [C, T >= 1] of finite numbers; got {tuple(media.shape)}")
    out = io.BytesIO()
    pcm = (media.clamp(-1, 1) * 32767).round().to(torch.int16).T.numpy()
    sf.write(out, pcm, sample_rate, format=form.upper() or "WAV", subtype="PCM_16" if form in ("wav", "flac") else None)
    return out.getvalue()


def save_sound(media: Tensor, path: str | os.PathLike[str], sample_rate: int) -> int:
    """Writes a sound, whole or not at all.

    Args:
        media: float [C, T].
        path: of a WAV file of 16 bits, or, by its suffix, of another format.
        sample_rate: Hz.

    Returns:
        int: how many samples lay outside [-1, 1] and were clipped.

    Raises:
        ValueError: there are no numbers to write.
    """
    path = Path(path)
    clipped = int((media.abs() > 1).sum())
    data = sound_bytes(media, sample_rate, path.suffix[1:], str(path))
    with whole_file(path) as file:
        file.write(data)
    return clipped


class _readable:
    """libsndfile's and our complaints as one line that names the file."""

    def __init__(self, source: Any, name: str):
        self.shown = name or (printable(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the sound")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ImportError):
            return
        reason = " ".join(str(getattr(error, "error_string", None) or error).split()) or type(error).__name__
        if reason.startswith("File does not exist"):  # libsndfile's word for bytes in which it finds nothing
            reason = "no known format"
        raise ValueError(f"{self.shown} cannot be read as a sound: {reason}") from error
