"""Damage: noise, blur and shifts of media, differentiable, in strengths drawn by row: what happens to media between their makers and those
who ask for a mark in them."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.interfaces import Augmentation
from gentok.rng import RowRNG
from gentok.settings import Fraction, NonNegativeFloat, NonNegativeInt

__all__ = ["Damage"]


class Damage(Augmentation, id="augmentation/damage"):
    """A shift, then blur, then noise, with a gradient to the media.

    Args:
        noise: largest standard deviation of Gaussian noise; that of a row is uniform in [0, noise].
        blur: largest share of a blur by (1, 2, 1) / 4 along every axis of space or time; that of a row is uniform in [0, blur]. It takes
            the highest frequencies, as JPEG and low-pass filters do.
        shift: largest shift in pixels or samples; uniform in -shift..shift along every axis, edges are repeated.
    """

    def __init__(self, noise: NonNegativeFloat = 0.0, blur: Fraction = 0.0, shift: NonNegativeInt = 0):
        self.noise, self.blur, self.shift = noise, blur, shift

    def __call__(self, media: Tensor, rng: RowRNG) -> Tensor:
        """media float [B, C, ...] of one axis or several -> the same shape and dtype."""
        axes, u = range(2, media.dim()), rng.fork("strength").uniform(media.dim()).to(media)
        if self.shift:
            for axis in axes:
                by = (u[:, axis] * (2 * self.shift + 1)).floor().long() - self.shift
                media = _shifted(media, axis, by)
        if self.blur:
            blurred = media
            for axis in axes:
                one = torch.ones(len(media), dtype=torch.int64, device=media.device)
                blurred = (2 * blurred + _shifted(blurred, axis, one) + _shifted(blurred, axis, -one)) / 4
            media = torch.lerp(media, blurred, _of_rows(self.blur * u[:, 0], media))
        if self.noise:
            noise = rng.fork("noise").normal(*media.shape[1:]).to(media)
            media = media + _of_rows(self.noise * u[:, 1], media) * noise
        return media


def _of_rows(values: Tensor, media: Tensor) -> Tensor:
    return values.view(-1, *[1] * (media.dim() - 1))


def _shifted(media: Tensor, axis: int, by: Tensor) -> Tensor:
    """Each row moved along an axis by int64 [B]; edges are repeated."""
    size = media.shape[axis]
    source = (torch.arange(size, device=media.device) - by[:, None]).clamp(0, size - 1)
    shape = [1] * media.dim()
    shape[0], shape[axis] = len(media), size
    return media.gather(axis, source.view(shape).expand(media.shape))
