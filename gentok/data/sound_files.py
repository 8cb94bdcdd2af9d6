"""Sound files in and out: media float [C, T] in [-1, 1] <-> WAV, FLAC, OGG and MP3 files or their bytes, at a rate of your choice.

Files are read and written by soundfile (libsndfile), resampled by torchaudio: a windowed sinc, cut off a little below half of the lower
rate. A part of a file is what that part of the whole file is: it is read with as much around it as the filter sees.
"""

from __future__ import annotations

import functools
import io
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.atomic import whole_file

__all__ = ["SOUND_SUFFIXES", "sound_size", "read_sound", "resample", "resampled_length", "part_step", "normalized", "save_sound"]

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_WIDTH, _ROLLOFF = 6, 0.99
"""torchaudio's filter: zero crossings on each side, and the cut-off as a share of half the lower rate."""
_TAPS = 20_000_000
"""The filter has about as many taps as the product of both rates over their common divisor: 70,560 from 44,100 to 16,000 Hz."""
PEAK, RMS, _GAIN = 0.95, 0.1, 100.0
"""What `normalized` brings sounds to, and how far it amplifies at most (40 dB): silence with a little noise stays that."""


def sound_size(source: str | os.PathLike[str] | bytes, name: str = "") -> tuple[int, int, int]:
    """(samples, sample rate in Hz, channels) from the header. Raises ValueError with a line where it is none, has no samples, or where
    a WAV file is shorter than its header says."""
    with _readable(source, name), _open(source) as file:
        found = (file.frames, file.samplerate, file.channels)
        if file.format in ("WAV", "WAVEX"):
            _check_riff(source)
        if found[0] < 1:
            raise ValueError("it has no samples")
        return found


def read_sound(
    source: str | os.PathLike[str] | bytes,
    sample_rate: int | None = None,
    channels: int | None = None,
    start: int = 0,
    samples: int | None = None,
    name: str = "",
) -> Tensor:
    """A sound file, or the bytes of one -> float32 [channels, T] at `sample_rate`, values as stored: integers scaled to [-1, 1).

    sample_rate, channels: the file's own by default; 1 mixes down (the mean), 2 doubles a mono sound. start, samples: a part, in samples
    of `sample_rate`, of which start must be a multiple of part_step(the file's rate, sample_rate); samples beyond the end are left out.
    Raises ValueError with a line where it cannot be read, is cut short, has other channels than can be mixed or values that are not finite.
    """
    with _readable(source, name), _open(source) as file:
        if file.format in ("WAV", "WAVEX"):
            _check_riff(source)
        rate, total = file.samplerate, file.frames
        wanted_rate = sample_rate or rate
        left, first, last = _span(rate, wanted_rate, start, samples, total)
        out = resample(_mixed(_decoded(file, first, last), channels), rate, wanted_rate)[:, left:]
    length = resampled_length(total, rate, wanted_rate) - start
    return out[:, : length if samples is None else min(samples, length)].contiguous()


def part_step(rate: int, sample_rate: int) -> int:
    """Samples of `sample_rate` after which a sample of `rate` falls on one again: where parts of a resampled file may begin."""
    return sample_rate // math.gcd(rate, sample_rate)


def _span(rate: int, sample_rate: int, start: int, samples: int | None, total: int) -> tuple[int, int, int]:
    """(samples of `sample_rate` to drop at the left, first and last + 1 sample of the file to read)."""
    step = part_step(rate, sample_rate)
    if start % step or start < 0:
        raise ValueError(f"a part of a sound at {rate} Hz, read at {sample_rate} Hz, begins at a multiple of {step} samples; got {start}")
    period = rate // math.gcd(rate, sample_rate)  # samples of the file per `step`
    around = 0
    if step != period:
        around = math.ceil((math.ceil(_WIDTH * period / (min(period, step) * _ROLLOFF)) + 1) / period) + 1  # periods that the filter sees
    before = min(around, start // step)
    first = (start // step - before) * period
    last = total if samples is None else min(total, (math.ceil((start + samples) / step) + around) * period)
    return before * step, first, max(first, last)


def _decoded(file: Any, first: int, last: int) -> Tensor:
    """float32 [C, last - first]."""
    file.seek(first)
    wave = file.read(last - first, dtype="float32", always_2d=True)
    if len(wave) < last - first:
        raise ValueError(f"it is cut short: {first + len(wave):,} of {file.frames:,} samples are there")
    out = torch.from_numpy(wave.T.copy())
    if not bool(out.isfinite().all()):
        raise ValueError("some of its samples are no numbers")
    return out


def _mixed(wave: Tensor, channels: int | None) -> Tensor:
    if channels is None or len(wave) == channels:
        return wave
    if channels == 1:
        return wave.mean(0, keepdim=True)
    if len(wave) == 1:
        return wave.expand(channels, -1)
    raise ValueError(f"it has {len(wave)} channels, from which {channels} cannot be made: set data.channels=1 to mix them down")


def resampled_length(length: int, rate: int, sample_rate: int) -> int:
    """Samples that `length` samples at `rate` become: the duration, rounded up."""
    return -(-length * sample_rate // rate)


def resample(wave: Tensor, rate: int, sample_rate: int) -> Tensor:
    """float32 [..., T] at `rate` Hz -> float32 [..., resampled_length] at `sample_rate` Hz. Raises ImportError with the pip command,
    ValueError where the rates have so small a common divisor that the filter would not fit into memory."""
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
    """float [C, T] -> the same with its largest magnitude at 0.95 (`peak`), or its root mean square at 0.1 (-20 dB) as far as its peaks
    leave room (`rms`); None changes nothing. Amplifies 100 times (40 dB) at most; silence stays silence."""
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


def save_sound(media: Tensor, path: str | os.PathLike[str], sample_rate: int) -> int:
    """media float [C, T] -> a WAV file of 16 bits (other suffixes: that format), written whole or not at all; returns how many samples lay
    outside [-1, 1] and were clipped. Raises ValueError where there are no numbers to write."""
    sf = _soundfile()
    path = Path(path)
    media = media.detach().float().cpu()
    if media.dim() != 2 or not media.shape[1] or not bool(media.isfinite().all()):
        raise ValueError(f"{path}: a sound to be written is float [C, T >= 1] of finite numbers; got {tuple(media.shape)}")
    clipped = int((media.abs() > 1).sum())
    out = io.BytesIO()
    pcm = (media.clamp(-1, 1) * 32767).round().to(torch.int16).T.numpy()
    sf.write(out, pcm, sample_rate, format=path.suffix[1:].upper() or "WAV", subtype="PCM_16" if path.suffix in (".wav", ".flac") else None)
    with whole_file(path) as file:
        file.write(out.getvalue())
    return clipped


# ------------------------------------------------------------------------------------------------------------------ reading


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"sound files are read by the package soundfile ({error}); run: pip install 'gentok[audio]'") from error
    return soundfile


def _open(source: Any) -> Any:
    sf = _soundfile()
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_file():
        raise FileNotFoundError("there is no such file")
    return sf.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))


def _shown(source: Any) -> str:
    return "the sound" if isinstance(source, bytes) else str(source)


class _readable:
    """libsndfile's and our complaints as one line that names the file."""

    def __init__(self, source: Any, name: str):
        self.shown = name or _shown(source)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ImportError):
            return
        reason = " ".join(str(getattr(error, "error_string", None) or error).split()) or type(error).__name__
        if reason.startswith("File does not exist"):  # libsndfile's word for bytes in which it finds nothing
            reason = "no known format"
        raise ValueError(f"{self.shown} cannot be read as a sound: {reason}") from error


def _check_riff(source: Any) -> None:
    """libsndfile reads what is there of a WAV file that is cut short, and says nothing. Raises ValueError then.

    A data chunk of length 0 or near 2^32 is of a writer that could not seek back, and says nothing about the end.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        if file.read(4) != b"RIFF":
            return
        place = 12
        while place + 8 <= end:
            file.seek(place)
            kind, size = file.read(4), int.from_bytes(file.read(4), "little")
            if kind == b"data":
                if place + 8 + size > end and size < 0xFFFF0000:
                    raise ValueError(f"it is cut short: {end - place - 8:,} of {size:,} bytes of samples are there")
                return
            place += 8 + size + size % 2
    raise ValueError("it is cut short: it has no samples")
