"""Two codebooks under one index (Qu et al., TokenFlow, arXiv 2412.03069, section 3.1): what a cell means and
how it looks, by one code.

    s, p = the two halves of a vector, each l2-normalised by itself;   e_s, e_p = those of a row
    code = argmin_v  |s - e_s,v|^2 + w |p - e_p,v|^2                      (equation 1; the release has w = 1)

That is the nearest row in channels scaled by 1 / sqrt(1 + w) and sqrt(w / (1 + w)), so everything else is
VQ's: gradient or averages, the start by k-means, revival. The scale is w's alone and is no part of what is
stored, looked up or penalised: the loss is that of the release,

    |sg x - e|^2 + commitment * |x - sg e|^2,   means over the channels of both halves, x and e normalised,
    commitment = 0.25

w = 0 chooses codes by meaning alone and w = inf by looks alone; the other half of a row is then the mean of
what shares its code.

Deviations: `nearest` takes every channel as it is, whatever w: it undoes `lookup`, also where w = 0 makes
half of the channels mute. The release starts at random and never revives; here that is kmeans_start = 0 and
revive_below = 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.codebooks.vq import VQ, Update, VQOptions
from gentok.settings import NonNegativeOrInf, PositiveInt, VocabSize

__all__ = ["DualCodebook"]


class DualCodebook(VQ, id="codebook/dual"):
    """A table of vocab_size rows of semantic + pixel channels, each half on its own unit sphere.

    Inputs and vectors are the concatenation of both halves, float [B, semantic + pixel, M]; `parts` says
    which channels are whose. No projections: they would mix what is compared apart, and belong to the
    branches of the tokenizer.
    """

    def __init__(
        self,
        vocab_size: VocabSize,
        semantic: PositiveInt = 32,
        pixel: PositiveInt = 8,
        w: NonNegativeOrInf = 1.0,
        update: Update = "gradient",
        **learning: VQOptions,
    ):
        """Makes a table as VQ does.

        Args:
            vocab_size: V.
            semantic: channels of the semantic half.
            pixel: channels of the pixel half.
            w: weight of the pixel distance, 0 to inf.
            update, learning: as of VQ.

        Raises:
            ValueError: a half has no channels, or w is below 0.
        """
        w = float(w)
        self.w, self._split = w, (semantic, pixel)
        super().__init__(vocab_size, semantic + pixel, update=update, **learning)
        self.parts = {"semantic": slice(0, semantic), "pixel": slice(semantic, semantic + pixel)}

    def _scaled(self, x: Tensor) -> Tensor:
        return torch.cat([F.normalize(half, dim=-1) for half in x.split(self._split, -1)], -1)

    def _scales(self) -> tuple[float, float]:
        """Of the two halves: both at most 1, so that no w overflows and w = inf is a limit like any other."""
        return (1.0, 0.0) if self.w == 0 else (1 / math.sqrt(1 + self.w), 1 / math.sqrt(1 + 1 / self.w))

    def _compared(self, x: Tensor) -> Tensor:
        return torch.cat([half * scale for half, scale in zip(x.split(self._split, -1), self._scales())], -1)
