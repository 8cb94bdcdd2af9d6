"""The Fréchet distance "FD-efflite0": between sets of images, in 1,280 pooled features of EfficientNet-lite0 at 128 px.

    FD(X, Y) = |m_X - m_Y|² + tr(S_X + S_Y - 2 (S_X S_Y)^(1/2)),   m, S: mean and covariance of a set's features      (arXiv 1706.08500)

The formula is FID's, the network is not: figures compare with each other and with no published FID. The distance is biased upwards, the
more the fewer the images, so each figure stands beside the same distance of real images in the same numbers, and sets below LEAST are
refused: 1,280 means and 820,000 covariances of some hundred images are mostly noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentok.metrics.cache import cached, keep
from gentok.metrics.image import frechet
from gentok.nn.features import pooled
from gentok.types import fingerprint

__all__ = ["LEAST", "SIZE", "image_features", "enough", "distances", "halves", "of_reconstructions", "of_samples"]

LEAST = 5000
SIZE = 128
VERSION = 1
"""Raised whenever the features change: it is part of the cache's key."""
Advance = Callable[[int], None]


def image_features(
    media: Tensor, *, device: str = "cpu", real: bool = False, cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:  # fmt: skip
    """media float [n, 1 or 3, H, W] in [-1, 1] -> float32 [n, 1280] on the CPU.

    real: features of real images are looked up in, and kept in, the cache, by the images' own content. progress: (items) -> a context
    that gives advance(items); opened only where something has to be computed.
    Raises ValueError on what is no image, ImportError where the network's package is missing.
    """
    name = f"efflite0-{fingerprint('efflite0', VERSION, SIZE, media)}" if real else ""
    kept = cached(name, cache) if real else None
    if kept is not None and kept["features"].shape == (len(media), 1280):
        return kept["features"]
    out = []
    with progress(len(media)) if progress else _silent() as advance:
        for part in media.split(128):
            out.append(pooled(part.to(device), SIZE).cpu())
            advance(len(part))
    features = torch.cat(out)
    if real:
        keep(name, {"features": features}, cache)
    return features


class _silent:
    def __enter__(self) -> Advance:
        return lambda n: None

    def __exit__(self, *error: object) -> None: ...


def enough(few: bool, *counts: int) -> None:
    """Raises ValueError where one of the numbers of images is below LEAST, unless `few`."""
    if min(counts) < LEAST and not few:
        raise ValueError(
            f"FD-efflite0 needs {LEAST:,} images on both sides; there are {' and '.join(f'{c:,}' for c in counts)} "
            "(few=true computes it all the same)"
        )


def distances(made: Tensor, real: Tensor, reference: Tensor, few: bool = False) -> dict[str, float]:
    """Features float [n, D], [m, D], [k, D] -> fd_efflite0, of `made` to the reference, and fd_efflite0_real, of `real` to the same one.

    Both sides have the same number of rows, the first min(n, m), so that both carry the same bias; `real` and the reference must share no
    image. Raises ValueError where a set has fewer than LEAST rows, unless `few`.
    """
    count = min(len(made), len(real))
    enough(few, count, len(reference))
    return {
        "fd_efflite0": float(frechet(made[:count], reference)),
        "fd_efflite0_real": float(frechet(real[:count], reference)),
    }


def halves(real: Tensor, few: bool = False) -> float | None:
    """Features float [n, D] -> the distance of their even rows to their odd ones; None where a half has fewer than LEAST, unless `few`."""
    even, odd = real[::2], real[1::2]
    if min(len(even), len(odd)) < (2 if few else LEAST):
        return None
    return float(frechet(even, odd))


_WHAT = f"Fréchet distances in 1,280 pooled features of EfficientNet-lite0 at {SIZE} px (bicubic), no FID. "
_HALVES = f"fd_efflite0_halves: the even held-out originals against the odd ones (None below {LEAST:,} each)"


def of_reconstructions(held_out: int, training: int) -> str:
    """What the figures of a tokenizer are, for its protocol."""
    return (
        f"{_WHAT}fd_efflite0: the {held_out:,} reconstructed held-out images against {training:,} training images, chosen once at random "
        f"and disjoint from them; fd_efflite0_real: the {held_out:,} held-out originals against the same {training:,}, what a perfect "
        "tokenizer reaches; fd_efflite0_own: the reconstructions against their own originals, as an rFID is usually taken, 0 for a "
        f"perfect tokenizer; {_HALVES}"
    )


def of_samples(samples: int, held_out: int) -> str:
    """What the figures of a generator are, for its protocol."""
    return (
        f"{_WHAT}fd_efflite0: {samples:,} samples against {held_out:,} held-out images; fd_efflite0_real: {samples:,} training images "
        f"against the same, what a perfect model of the training set's law reaches; {_HALVES}"
    )
