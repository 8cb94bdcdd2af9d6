"""Short-time Fourier transform and mel spectrogram in plain torch.

    X[f, t] = sum over n of  w[n] x[t hop + n - pad] exp(-2 pi i f n / n_fft)              (reflected at both ends)
    mel     = filters @ |X|^power                                                          (triangles over a mel scale)

Frame t is centred on sample t hop where pad = n_fft / 2 (the default), and on t hop + hop / 2 where pad = (n_fft - hop) / 2, which makes
T / hop frames.

Mel scales: "htk" 2595 log10(1 + f / 700); "slaney" linear below 1 kHz and logarithmic above (Auditory Toolbox). Filters of norm "slaney"
have area 1 in Hz, those of norm None height 1. Everything is float32 (float64 for float64 waves), also under autocast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.precision import no_autocast

__all__ = ["stft", "mel_filters", "frame_mask", "Mel"]


def stft(
    wave: Tensor,
    n_fft: int,
    hop: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    pad: int | None = None,
) -> Tensor:
    """The short-time Fourier transform.

    Args:
        wave: float [..., T].
        n_fft: samples of a frame.
        hop: samples from one frame to the next; None: n_fft // 4.
        window: float [w <= n_fft], zero-padded on both sides; None: a periodic Hann window of n_fft.
        normalized: whether to divide by the root of the window's energy.
        pad: samples reflected at each end, 0 for none; None: n_fft // 2.

    Returns:
        complex [..., n_fft / 2 + 1, frames], frames = (T + 2 pad - n_fft) // hop + 1.

    Raises:
        ValueError: the wave is too short for one frame or for its reflection, or the window longer than a frame.
    """
    hop, pad = n_fft // 4 if hop is None else hop, n_fft // 2 if pad is None else pad
    shape, length = wave.shape[:-1], wave.shape[-1]
    least = max(pad + 1, n_fft - 2 * pad)
    if length < least:
        raise ValueError(
            f"an STFT with n_fft={n_fft} needs waves of at least {least} samples; got {length}: pad the wave or take a smaller n_fft"
        )
    wave = wave.reshape(-1, 1, length)
    wave = wave if wave.dtype == torch.float64 else wave.float()
    window = torch.hann_window(n_fft, dtype=wave.dtype, device=wave.device) if window is None else window.to(wave)
    if len(window) > n_fft:
        raise ValueError(f"the window has {len(window)} samples, more than n_fft={n_fft}")
    left = (n_fft - len(window)) // 2
    window = F.pad(window, (left, n_fft - len(window) - left))
    if pad:
        wave = F.pad(wave, (pad, pad), mode="reflect")
    frames = wave[:, 0].unfold(-1, n_fft, hop) * window
    spectrum = torch.fft.rfft(frames, dim=-1).transpose(-1, -2)
    if normalized:
        spectrum = spectrum / window.square().sum().sqrt()
    return spectrum.reshape(*shape, *spectrum.shape[-2:])


_LINEAR = 200.0 / 3  # slaney: Hz per mel below 1 kHz
_KNEE = 1000.0 / _LINEAR
_LOG = math.log(6.4) / 27.0  # and nepers per mel above


def _mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595.0 * math.log10(1.0 + hz / 700.0)
    return hz / _LINEAR if hz < 1000.0 else _KNEE + math.log(hz / 1000.0) / _LOG


def _hz(mels: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return torch.where(mels < _KNEE, mels * _LINEAR, 1000.0 * torch.exp(_LOG * (mels - _KNEE)))


def mel_filters(
    bins: int,
    mels: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: str = "htk",
    norm: str | None = None,
    empty: bool = False,
) -> Tensor:
    """Triangles over frequencies from 0 to half the sample rate.

    Args:
        bins: frequencies.
        mels: triangles.
        sample_rate: Hz.
        f_min: Hz where the first begins.
        f_max: Hz where the last ends; None: half the sample rate.
        scale: htk or slaney.
        norm: slaney, or None.
        empty: whether triangles too narrow to touch any bin are taken as they are, rows of zeros, as the losses of codecs do at their
            short windows.

    Returns:
        float32 [mels, bins].

    Raises:
        ValueError: such triangles, where not `empty`; an unknown scale or norm; frequencies that do not grow.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if scale not in ("htk", "slaney") or norm not in (None, "slaney"):
        raise ValueError(f"mel filters have scale htk or slaney and norm null or slaney; got scale={scale!r}, norm={norm!r}")
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(f"mel filters need 0 <= f_min < f_max <= {sample_rate / 2:g} Hz; got f_min={f_min:g}, f_max={f_max:g}")
    frequencies = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)
    edges = _hz(torch.linspace(_mel(f_min, scale), _mel(f_max, scale), mels + 2, dtype=torch.float64), scale)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)).clamp(min=0)
    zeros = (filters.sum(1) == 0).nonzero()
    if len(zeros) and not empty:
        raise ValueError(f"mel filter {int(zeros[0])} of {mels} touches none of the {bins} frequencies: take fewer mels or a larger n_fft")
    if norm == "slaney":
        filters = filters * (2.0 / (high - low))
    return filters.float()


def frame_mask(lengths: Tensor, frames: int, hop: int) -> Tensor:
    """Frames that begin a hop within the length, ceil(length / hop) of them.

    Args:
        lengths: int64 [B], in samples.
        frames: how many columns.
        hop: samples per frame.

    Returns:
        bool [B, frames].
    """
    return torch.arange(frames, device=lengths.device) * hop < lengths[:, None]


class Mel(nn.Module):
    """wave float [..., T] -> mel spectrogram float [..., mels, frames] of |STFT|^power; its constants are in no state dict.

    Args:
        sample_rate: Hz.
        n_fft, hop, normalized, pad: as of `stft`.
        mels: bands.
        window: samples of the Hann window; None: n_fft.
        power: of the magnitudes.
        filters: further arguments of `mel_filters`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        hop: int | None = None,
        mels: int = 80,
        window: int | None = None,
        power: float = 1.0,
        normalized: bool = False,
        pad: int | None = None,
        **filters: Any,
    ):
        super().__init__()
        self.n_fft, self.hop, self.power, self.normalized = n_fft, n_fft // 4 if hop is None else hop, power, normalized
        self.pad = n_fft // 2 if pad is None else pad
        self.register_buffer("filters", mel_filters(n_fft // 2 + 1, mels, sample_rate, **filters), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft if window is None else window), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        with no_autocast(wave.device):
            spectrum = stft(wave, self.n_fft, self.hop, self.window, self.normalized, self.pad)
            magnitude = spectrum.abs() if self.power == 1 else spectrum.abs().pow(self.power)
            return self.filters.to(magnitude.dtype) @ magnitude
