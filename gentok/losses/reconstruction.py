"""How far a reconstruction lies from its media: weighted means of absolute and squared error, and a
perceptual distance if one is given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gentok.interfaces import Loss
from gentok.settings import NonNegativeFloat

__all__ = ["Reconstruction"]


class Reconstruction(Loss, id="loss/reconstruction"):
    """Weighted terms {name: scalar} of media float [B, C, ...] in [-1, 1], without those whose weight is
    0."""

    def __init__(self, l1: NonNegativeFloat = 1.0, l2: NonNegativeFloat = 0.0, perceptual: Loss | None = None):
        """Holds the terms.

        Args:
            l1: weight of the mean absolute error.
            l2: weight of the mean squared error.
            perceptual: a weighted distance such as gentok.losses.perceptual.Perceptual; None: no such term.

        Raises:
            ValueError: a weight is below 0, or there is no term.
        """
        if not (l1 or l2 or perceptual):
            raise ValueError("a reconstruction loss needs at least one term: set l1, l2 or perceptual")
        self.l1, self.l2, self.perceptual = l1, l2, perceptual

    def __call__(self, reconstruction: Tensor, media: Tensor) -> dict[str, Tensor]:
        media = media.to(reconstruction.dtype)
        terms: dict[str, Tensor] = {}
        if self.l1:
            terms["l1"] = self.l1 * F.l1_loss(reconstruction, media)
        if self.l2:
            terms["l2"] = self.l2 * F.mse_loss(reconstruction, media)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, media)
        return terms
