"""Sets of waves, and codes that survive: the Fréchet distance of mel statistics, and index stability.

mel Fréchet distance: FD (gentok.metrics.image.frechet) of a wave's log-mel spectrum, its mean and standard deviation over time in 64
slaney mels (windows of 32 ms or a little more, a quarter apart). No network listens, so it hears timbre, loudness and their spread, not
what is said; its figures compare with each other and with no published FAD. Biased upwards for few waves: give that of two real sets of
the same sizes beside it.

index stability: codes that encode finds again in what decode makes of them, of every level, after one or more rounds; high levels of a
residual codec commonly lose most of theirs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gentok.metrics.image import frechet
from gentok.nn.spectral import Mel, frame_mask
from gentok.types import Tokens

__all__ = ["mel_features", "mel_frechet", "index_stability"]

MELS, FLOOR = 64, 1e-5


@torch.no_grad()
def mel_features(media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """float [B, C, T], lengths int64 [B] in samples -> float32 [B, 128]: mean and standard deviation over the frames within a length."""
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
    """float [n, C, T] and [m, C, T'], at least two each -> the distance, at least 0."""
    return float(frechet(mel_features(made, sample_rate, made_lengths), mel_features(real, sample_rate, real_lengths)).clamp(min=0))


@lru_cache(maxsize=8)
def _mel(sample_rate: int, device: str) -> Mel:
    window = 2 ** max(2, (int(0.032 * sample_rate) - 1).bit_length())  # the power of two that is not shorter
    return Mel(sample_rate, window, mels=MELS, scale="slaney", norm="slaney", empty=True).to(device)


@torch.inference_mode()
def index_stability(tokenizer: Any, tokens: Tokens, samples: int, lengths: Tensor | None = None, rounds: int = 1) -> list[list[float]]:
    """tokens of waves of `samples` samples (rows of `lengths` int64 [B]) -> for each round of decode and encode, the share of each level's
    codes that are still the first ones, in [0, 1]."""
    if rounds < 1:
        raise ValueError(f"index stability needs at least one round; got {rounds}")
    out, now, present = [], tokens, tokens.present
    for _ in range(rounds):
        wave = tokenizer.decode(now, samples=samples)
        now = tokenizer.encode(wave.clamp(-1, 1), lengths)
        kept = ((now.codes == tokens.codes) & present).sum((0, 2)).double() / present.sum((0, 2)).clamp(min=1)
        out.append(kept.tolist())
    return out
