"""Sets of waves: the Fréchet distance of mel statistics.

mel Fréchet distance: FD (gentok.metrics.image.frechet) of a wave's log-mel spectrum, its mean and standard
deviation over time in 64 slaney mels (windows of 32 ms or a little more, a quarter apart). No network is
asked, so it measures timbre, loudness and their spread, not what is spoken; its figures compare with each
other and with no published FAD. Biased upwards for few waves: give that of two real sets of the same sizes
beside it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from gentok.metrics.image import frechet
from gentok.nn.spectral import Mel, frame_mask

__all__ = ["mel_features", "mel_frechet"]

MELS, FLOOR = 64, 1e-5


@torch.no_grad()
def mel_features(media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """Log-mel statistics.

    Args:
        media: float [B, C, T].
        sample_rate: Hz.
        lengths: int64 [B] in samples; None: all of T.

    Returns:
        float32 [B, 128]: mean and standard deviation over the frames within a length.
    """
    if media.dim() != 3:
        raise ValueError(f"mel features are of waves [B, C, T]; got {tuple(media.shape)}")
    mel = _mel(sample_rate, str(media.device))
    if lengths is not None:
        return torch.cat([mel_features(row[..., :n], sample_rate) for row, n in zip(media.split(1), lengths.tolist(), strict=True)])
    wave = F.pad(media.float().mean(1), (0, max(0, mel.n_fft // 2 + 1 - media.shape[-1])))
    spectrum = mel(wave).clamp(min=FLOOR).log10()
    inside = frame_mask(torch.full((len(wave),), media.shape[-1], device=wave.device), spectrum.shape[-1], mel.hop)
    spectrum = spectrum[..., inside[0]]
    return torch.cat([spectrum.mean(-1), spectrum.std(-1, correction=0)], 1)


def mel_frechet(
    made: Tensor, real: Tensor, sample_rate: int, made_lengths: Tensor | None = None, real_lengths: Tensor | None = None
) -> float:
    """The mel Fréchet distance, at least 0.

    Args:
        made, real: float [n, C, T] and [m, C, T'], at least two each.
        sample_rate: Hz of both.
        made_lengths, real_lengths: int64 [n] and [m] in samples.
    """
    return float(frechet(mel_features(made, sample_rate, made_lengths), mel_features(real, sample_rate, real_lengths)).clamp(min=0))


@lru_cache(maxsize=8)
def _mel(sample_rate: int, device: str) -> Mel:
    window = 2 ** max(2, (int(0.032 * sample_rate) - 1).bit_length())  # the power of two that is not shorter
    return Mel(sample_rate, window, mels=MELS, scale="slaney", norm="slaney", empty=True).to(device)
