"""Finite scalar quantization (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv
2309.15505).

Every channel is bounded and rounded to one of L values; the code is the mixed-radix number of its digits,
first channel fastest:

    half = (L - 1)(1 + 1e-3) / 2,   offset = 1/2 if L is even else 0,   shift = atanh(offset / half)
    digit = round(tanh(z + shift) half - offset) + floor(L / 2)   in 0..L-1
    value = (digit - floor(L / 2)) / floor(L / 2)
    code = sum_i digit_i prod_{j < i} L_j

Straight-through in the rounding alone, so that the gradient is that of the bounded value. There is nothing to
learn and no loss. The codebook is a constant of its configuration: its state says nothing about which
tokenizer made a code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentok.codebooks.base import SingleLevel, straight_through
from gentok.rng import RowRNG
from gentok.settings import PositiveInt, PositiveInts

__all__ = ["FSQ"]


class FSQ(SingleLevel, id="codebook/fsq"):
    """V is the product of the values of all channels."""

    def __init__(self, values: PositiveInts, width: PositiveInt | None = None):
        """There is no table.

        Args:
            values: the paper's levels L, the number of values of each channel, 3 or more: [8, 8, 8, 5, 5, 5]
                gives V = 64,000.
            width: channels in and out where they differ from len(values) (linear projections).

        Raises:
            ValueError: a channel has fewer than 3 values.
        """
        values = tuple(int(v) for v in values)
        if not values or min(values) < 3:
            raise ValueError(f"FSQ needs 3 or more values per channel; got {list(values)} (for bits, take the codebook lfq)")
        super().__init__(len(values), width, (math.prod(values),))
        self.values = values
        self.register_buffer("sizes", torch.tensor(values), persistent=False)
        self.register_buffer("middle", torch.tensor([v // 2 for v in values]), persistent=False)
        self.register_buffer("radix", torch.tensor([math.prod(values[:i]) for i in range(len(values))]), persistent=False)

    def _digits(self, codes: Tensor) -> Tensor:
        return torch.div(codes[..., None], self.radix, rounding_mode="floor") % self.sizes - self.middle

    def _codes(self, digits: Tensor) -> Tensor:
        """digits integral, -floor(L / 2).., of NaN the middle -> int64 without the last axis."""
        return ((digits.nan_to_num(0.0).long() + self.middle) * self.radix).sum(-1)

    def rows(self, codes: Tensor) -> Tensor:
        return self._digits(codes).float() / self.middle.float()

    def search(self, x: Tensor) -> Tensor:
        digits = (x * self.middle).round()
        return self._codes(torch.minimum(torch.maximum(digits, -self.middle), self.sizes - 1 - self.middle))

    def _bounded(self, x: Tensor) -> Tensor:
        half = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def _approximated(self, x: Tensor) -> Tensor:
        return self._bounded(x) / self.middle

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        bounded = self._bounded(x)
        codes = self._codes(bounded.detach().round())
        return codes, straight_through(self.rows(codes), bounded / self.middle), {}
