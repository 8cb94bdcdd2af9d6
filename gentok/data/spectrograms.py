"""Sounds as images: mel spectrograms in decibels, in colours that grow lighter with level (magma).

    level = 20 log10(2 S / sum of the window)       a full-scale sine reads about 0 dB, whatever window and rate
Columns lie 10 ms apart, rows are mel bands from 0 Hz (bottom) to half the sample rate (top); black is 80 dB below full scale.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.nn.spectral import Mel

__all__ = ["FLOOR_DB", "mel_levels", "spectrograms"]

FLOOR_DB = -80.0
ROWS = 80
_COLUMNS_PER_SECOND = 100
_PAPER = 1.0
"""Behind the end of a sound: white, as the gaps of a grid."""


@functools.lru_cache(8)
def _mel(sample_rate: int) -> Mel:
    window = 1 << max(8, round(sample_rate * 0.064).bit_length() - 1)  # 64 ms at most, a power of two
    return Mel(sample_rate, window, hop=max(1, sample_rate // _COLUMNS_PER_SECOND), mels=ROWS, scale="slaney", empty=True)


@torch.no_grad()
def mel_levels(media: Tensor, sample_rate: int) -> Tensor:
    """Mel levels of the mean of the channels.

    Args:
        media: float [B, C, T].
        sample_rate: Hz.

    Returns:
        Tensor: float32 [B, 80, T // (sample_rate / 100) + 1], dB between -80 and about 0.
    """
    mel = _mel(sample_rate)
    wave = media.detach().float().cpu().mean(1)
    wave = F.pad(wave, (0, max(0, mel.n_fft // 2 + 1 - wave.shape[1])))
    return 20 * (mel(wave) * (2 / mel.window.sum())).clamp(min=10 ** (FLOOR_DB / 20)).log10()


def spectrograms(media: Tensor, sample_rate: int, lengths: Tensor | None = None, seconds: float | None = None) -> Tensor:
    """Draws sounds, one below the other.

    Args:
        media: float [B, C, T].
        sample_rate: Hz.
        lengths: int64 [B] in samples; None: all are T long.
        seconds: of longer sounds, only the beginning is drawn; None: all.

    Returns:
        Tensor: images float32 [B, 3, 80, W] in [-1, 1], white behind a row's end.
    """
    import matplotlib

    if seconds is not None:
        media = media[..., : max(1, round(seconds * sample_rate))]
    levels = mel_levels(media, sample_rate)
    shade = ((levels - FLOOR_DB) / -FLOOR_DB).clamp(0, 1).flip(1)
    table = torch.tensor(matplotlib.colormaps["magma"].colors) * 2 - 1  # [256, 3]
    out = table[(shade * 255).round().long()].movedim(-1, 1)
    if lengths is not None:
        ends = -(-lengths.cpu() * _COLUMNS_PER_SECOND // sample_rate)
        behind = torch.arange(out.shape[-1]) > ends[:, None]
        out = torch.where(behind[:, None, None], _PAPER, out)
    return out.contiguous()
