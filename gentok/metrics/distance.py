"""The Fréchet distance "FD-efflite0": between sets of images, in 1,280 pooled features of EfficientNet-lite0
at 128 px.

    FD(X, Y) = |m_X - m_Y|² + tr(S_X + S_Y - 2 (S_X S_Y)^(1/2))                        (arXiv 1706.08500)
    m, S: mean and covariance of a set's features

The formula is FID's, the network is not: figures compare with each other and with no published FID. The
distance is biased upwards, the more the fewer the images, so each figure stands beside the same distance of
real images in the same numbers, and sets below LEAST are refused: 1,280 means and 820,000 covariances of some
hundred images are mostly noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gentok.metrics.cache import cached
from gentok.metrics.image import frechet
from gentok.nn.features import pooled
from gentok.types import fingerprint

__all__ = ["LEAST", "SIZE", "image_features", "enough", "distances", "halves"]

LEAST = 5000
SIZE = 128
VERSION = 1
"""Raised whenever the features change: it is part of the cache's key."""


def image_features(
    media: Tensor, *, device: str = "cpu", real: bool = False, cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int], AbstractContextManager[Callable[[int], None]]] | None = None,
) -> Tensor:  # fmt: skip
    """Pooled features of EfficientNet-lite0.

    Args:
        media: float [n, 1 or 3, H, W] in [-1, 1].
        device: where the network runs.
        real: whether the images are real: their features are then kept in the cache, by the images' own
            content.
        cache: a folder; None: $XDG_CACHE_HOME/gentok (~/.cache/gentok).
        progress: (items) -> a context that gives advance(items); opened only where something has to be
            computed.

    Returns:
        float32 [n, 1280] on the CPU.

    Raises:
        ValueError: the media are no images.
        ImportError: the network's package is missing.
    """

    def compute() -> dict[str, Tensor]:
        out = []
        with progress(len(media)) if progress else nullcontext(lambda n: None) as advance:
            for part in media.split(128):
                out.append(pooled(part.to(device), SIZE).cpu())
                advance(len(part))
        return {"features": torch.cat(out)}

    kept = cached(f"efflite0-{fingerprint('efflite0', VERSION, SIZE, media)}", compute, cache)[0] if real else compute()
    return kept["features"]


def enough(few: bool, *counts: int) -> None:
    """Raises ValueError where one of the numbers of images is below LEAST, unless `few`."""
    if min(counts) < LEAST and not few:
        raise ValueError(
            f"FD-efflite0 needs {LEAST:,} images on both sides; there are {' and '.join(f'{c:,}' for c in counts)} "
            "(few=true computes it all the same)"
        )


def distances(made: Tensor, real: Tensor, reference: Tensor, few: bool = False) -> dict[str, float]:
    """FD-efflite0 of generated images and of real ones to the same reference.

    Args:
        made: features float [n, D] of generated images.
        real: features float [m, D] of real ones that share no image with the reference.
        reference: features float [k, D].
        few: whether to compute it of fewer than LEAST rows too.

    Returns:
        {"fd_efflite0", "fd_efflite0_real"}: both of the first min(n, m) rows, so that both carry the same
        bias.

    Raises:
        ValueError: a set has fewer than LEAST rows, and not `few`.
    """
    count = min(len(made), len(real))
    enough(few, count, len(reference))
    return {"fd_efflite0": float(frechet(made[:count], reference)), "fd_efflite0_real": float(frechet(real[:count], reference))}


def halves(real: Tensor, few: bool = False) -> float | None:
    """Features float [n, D] -> the distance of their even rows to their odd ones; None where a half has fewer
    than LEAST, unless `few`."""
    even, odd = real[::2], real[1::2]
    if min(len(even), len(odd)) < (2 if few else LEAST):
        return None
    return float(frechet(even, odd))
