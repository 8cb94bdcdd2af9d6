"""How far a reconstructed wave lies from its original: SI-SDR, and a distance of log-mel spectrograms at many
scales.

    SI-SDR (Le Roux et al., "SDR - half-baked or well done?", arXiv 1811.02508, equation 4), without means:
        a = <r, m> / <m, m>;   10 log10(|a m|² / |r - a m|²)
    mel distance (the mel loss of DAC, arXiv 2306.06546, section 3.5, without its weight):
        sum over windows w of  mean over mels and frames |log10 max(S_w(r), 1e-5) - log10 max(S_w(m), 1e-5)|
        S_w: magnitudes through 5 w / 32 slaney mel filters, Hann windows of w = 32, 64, ..., 2048 samples,
             a quarter of w apart

Rows may have lengths: what lies beyond does not count, and a row gives in a batch what it gives alone.
torchmetrics' SI-SDR has no lengths, rounds to the media's dtype and is not finite for silence.

Of sets of waves, the mel Fréchet distance: FD (gentok.metrics.image.frechet) of a wave's log-mel spectrum,
its mean and standard deviation over time in 64 slaney mels (windows of 32 ms or a little more, a quarter
apart). No network is asked, so it measures timbre, loudness and their spread, not what is spoken; its figures
compare with each other and with no published FAD. Biased upwards for few waves: give that of two real sets of
the same sizes beside it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from gentok.metrics.image import frechet
from gentok.nn.spectral import Mel, frame_mask

__all__ = ["LIMIT_DB", "WINDOWS", "FLOOR", "MELS", "mel_distance", "mel_features", "mel_frechet", "si_sdr"]

LIMIT_DB = 120.0
"""SI-SDR is cut here, on both sides: about where the rounding of float32 waves lies."""
WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
FLOOR = 1e-5
MELS = 64
"""Of the mel Fréchet distance."""


def si_sdr(reconstruction: Tensor, media: Tensor, lengths: Tensor | None = None) -> Tensor:
    """SI-SDR.

    Args:
        reconstruction, media: float [B, C, T].
        lengths: int64 [B] in samples; None: all of T.

    Returns:
        float64 [B] dB in [-120, 120], the mean over channels. Silence (a constant wave) has no scale: against
        silence it gives 120, against anything else -120.

    Raises:
        ValueError: shapes differ, or lengths lie outside of them.
    """
    _check(reconstruction, media, lengths)
    r, m = reconstruction.detach().double(), media.detach().double()
    mask = torch.ones_like(m[:, :1]) if lengths is None else _within(lengths, m)
    count = mask.sum(-1, keepdim=True)
    r, r_silent = _centred(r * mask, mask, count)
    m, m_silent = _centred(m * mask, mask, count)
    scale = (r * m).sum(-1, keepdim=True) / m.square().sum(-1, keepdim=True).clamp(min=1e-300)
    wanted, rest = (scale * m).square().sum(-1), (r - scale * m).square().sum(-1)
    db = 10 * (wanted.clamp(min=1e-300).log10() - rest.clamp(min=1e-300).log10())
    db = torch.where(r_silent | m_silent, torch.where(r_silent & m_silent, LIMIT_DB, -LIMIT_DB), db)
    return db.clamp(-LIMIT_DB, LIMIT_DB).mean(1)


def mel_distance(reconstruction: Tensor, media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """The mel distance. Waves of at most 1024 samples are filled up with zeros to 1025, which the longest
    window needs.

    Args:
        reconstruction, media: float [B, C, T].
        sample_rate: Hz of both.
        lengths: int64 [B] in samples; None: all of T.

    Returns:
        float64 [B] >= 0, the mean over channels; at most 0.35 for a change of level by 1 dB (1/20 for each of
        7 windows).

    Raises:
        ValueError: shapes differ, or lengths lie outside of them.
    """
    _check(reconstruction, media, lengths)
    if lengths is None:
        return _mel_distance(reconstruction, media, sample_rate)
    rows = zip(reconstruction.split(1), media.split(1), lengths.tolist(), strict=True)
    return torch.cat([_mel_distance(r[..., :n], m[..., :n], sample_rate) for r, m, n in rows])


@torch.no_grad()
def _mel_distance(reconstruction: Tensor, media: Tensor, sample_rate: int) -> Tensor:
    pair = torch.stack([reconstruction.float(), media.float()])
    pair = F.pad(pair, (0, max(0, WINDOWS[-1] // 2 + 1 - pair.shape[-1])))
    total = torch.zeros(pair.shape[1], dtype=torch.float64, device=pair.device)
    for mel in _scales(sample_rate, str(pair.device)):
        made, real = mel(pair).clamp(min=FLOOR).log10()
        total += (made - real).abs().flatten(1).double().mean(1)
    return total


@lru_cache(maxsize=8)
def _scales(sample_rate: int, device: str) -> list[Mel]:
    return [Mel(sample_rate, w, mels=5 * w // 32, scale="slaney", norm="slaney", empty=True).to(device) for w in WINDOWS]


def _within(lengths: Tensor, media: Tensor) -> Tensor:
    """1 within each row's length, else 0: float [B, 1, T]."""
    places = torch.arange(media.shape[-1], device=media.device)
    return (places < lengths.to(media.device)[:, None])[:, None].to(media)


def _centred(wave: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(the wave without its mean, whether nothing is left but rounding, bool [B, C])."""
    out = (wave - wave.sum(-1, keepdim=True) / count) * mask
    return out, out.square().sum(-1) <= 1e-24 * wave.square().sum(-1)


def _check(reconstruction: Tensor, media: Tensor, lengths: Tensor | None) -> None:
    if media.dim() != 3 or reconstruction.shape != media.shape or not media.shape[-1]:
        raise ValueError(
            f"measures of audio compare waves [B, C, T] of one shape; got {tuple(reconstruction.shape)} and {tuple(media.shape)}: "
            "decode with samples=T, or trim"
        )
    if lengths is not None and (lengths.shape != media.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > media.shape[-1]):
        raise ValueError(f"lengths must be {len(media)} numbers of samples from 1 to {media.shape[-1]}; got {lengths.tolist()}")


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
