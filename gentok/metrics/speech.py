"""How speech sounds after coding, by packages that are installed apart.

    pesq                 PESQ, ITU-T P.862.2 (wide band, 16 kHz) or P.862 (narrow band, 8 kHz): -0.5 to 4.64
                         (package pesq)
    stoi                 short-time objective intelligibility (Taal et al., 2011), 0 to 1 (package pystoi)
    dnsmos               DNSMOS P.835 and P.808 (Reddy et al., arXiv 2110.01763): predicted opinions 1 to 5,
    of
                         a wave alone (package speechmos)
    speaker_similarity   cosine of speaker embeddings of a GE2E network (Wan et al., arXiv 1710.10467; package
                         resemblyzer)

Channels are averaged, and waves are brought to the rate that a measure is defined at. A row that a measure
cannot rate (silence; too short) is NaN: leave it out of means, and say how many there were. torchmetrics
wraps the same packages, but raises where we give NaN, and its DNSMOS downloads its models.

All take `media` (and `reconstruction`) float [B, C, T] in [-1, 1], `sample_rate` in Hz, and `lengths` int64
[B] in samples (None: all of T).
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentok.metrics.optional_packages import package, rows

__all__ = ["pesq", "stoi", "dnsmos", "speaker_embeddings", "speaker_similarity"]


def pesq(reconstruction: Tensor, media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """PESQ: wide band at 16 kHz, for media below 16 kHz narrow band at 8 kHz (another scale: never compare
    the two).

    Returns:
        float64 [B], NaN where PESQ finds no utterance, or less than a quarter of a second.
    """
    module = package("pesq", "pesq", "PESQ")
    rate, mode = (16000, "wb") if sample_rate >= 16000 else (8000, "nb")
    out = []
    for made, real in _pairs(reconstruction, media, sample_rate, rate, lengths):
        try:
            out.append(float(module.pesq(rate, real, made, mode)) if made.any() else math.nan)
        except (module.NoUtterancesError, module.BufferTooShortError):
            out.append(math.nan)
    return torch.tensor(out, dtype=torch.float64)


def stoi(reconstruction: Tensor, media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """STOI: float64 [B], NaN where less than 30 frames (about 0.4 s) are not silent."""
    module = package("pystoi", "pystoi", "STOI")
    out = []
    for made, real in _pairs(reconstruction, media, sample_rate, 10000, lengths):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = float(module.stoi(real, made, 10000)) if real.any() else math.nan
        out.append(math.nan if any("Not enough STFT frames" in str(w.message) for w in caught) else value)
    return torch.tensor(out, dtype=torch.float64)


DNSMOS_WINDOW = 144160
"""Samples at 16 kHz, 9.01 s."""


def dnsmos(media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> dict[str, Tensor]:
    """DNSMOS of the waves alone.

    Waves of less than the model's window of 9.01 s are repeated to fill one; the package would double them
    and take the mean over up to nine windows of the same repeated sound (single digits: 0.03 apart on
    average, in either direction).

    Returns:
        {"overall", "signal", "background", "p808"}: float64 [B] each.
    """
    module = package("speechmos.dnsmos", "speechmos librosa onnxruntime", "DNSMOS")
    names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
    waves = rows(media, sample_rate, 16000, lengths)
    found = [module.run(np.resize(wave, max(DNSMOS_WINDOW, len(wave))).clip(-1, 1), 16000) for wave in waves]
    return {ours: torch.tensor([float(row[theirs]) for row in found], dtype=torch.float64) for ours, theirs in names.items()}


def speaker_embeddings(media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """float32 [B, 256] of norm 1; NaN where no voice is found."""
    module, encoder = _voices()
    out = []
    for wave in rows(media, sample_rate, 16000, lengths):
        voiced = module.preprocess_wav(wave) if wave.any() else wave[:0]
        out.append(torch.from_numpy(encoder.embed_utterance(voiced)) if len(voiced) else torch.full((256,), math.nan))
    return torch.stack(out)


def speaker_similarity(reconstruction: Tensor, media: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """float64 [B]: the cosine of the embeddings, at most 1.

    Different speakers have about 0.6, not 0: give the value of pairs of different speakers beside it.
    """
    made, real = (speaker_embeddings(x, sample_rate, lengths).double() for x in (reconstruction, media))
    return (made * real).sum(1)


@lru_cache(maxsize=1)
def _voices() -> tuple[Any, Any]:
    module = package("resemblyzer", "--no-deps resemblyzer; pip install webrtcvad-wheels librosa", "speaker similarity")
    return module, module.VoiceEncoder("cpu", verbose=False)


def _pairs(reconstruction: Tensor, media: Tensor, sample_rate: int, rate: int, lengths: Tensor | None) -> zip:
    if reconstruction.shape != media.shape:
        raise ValueError(f"both waves must have one shape; got {tuple(reconstruction.shape)} and {tuple(media.shape)}: trim to samples=T")
    return zip(rows(reconstruction, sample_rate, rate, lengths), rows(media, sample_rate, rate, lengths), strict=True)
