"""The binary autoencoder's codebook: sampled bits, and a sum of learnt vectors (BAE of ELM, Wu et al., arXiv
2410.16257; after Binary Latent Diffusion, Wang et al., arXiv 2304.04820).

    p = sigmoid(A z + a);    b_i ~ Bernoulli(p_i) in training,  b_i = [p_i > 1/2] otherwise
    vector = sum_i b_i e_i
    straight-through: the gradient of b is that of p.    loss = entropy * mean_i H(p_i), nothing by default

Every one of the 2^bits codes can be used by construction. Token models see K = levels sub-codes of bits /
levels bits (bit_groups.py has the order). The vectors e_i are learnt freely and may depend on one another,
and a code of all zeros is the vector 0 whether present or not: no nearest code exists, and `nearest` says so.

Deviation: the published penalty has weight 0 and applies the sigmoid twice; `entropy` here is the bits'
entropy in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, straight_through
from gentok.codebooks.bit_groups import bits_per_level, from_bits, to_bits, without_unused_levels
from gentok.codebooks.search import row_mean
from gentok.rng import RowRNG
from gentok.settings import Count, NonNegativeFloat, PositiveInt
from gentok.types import Quantized

__all__ = ["BAE"]


class BAE(BaseCodebook, id="codebook/bae"):
    """2^bits codes, each the sum of the vectors of its bits; K = levels."""

    invertible = False
    has_nearest = False

    def __init__(self, bits: PositiveInt, width: PositiveInt, levels: Count = 2, entropy: NonNegativeFloat = 0.0):
        """Draws the vectors of the bits.

        Args:
            bits: of a code.
            width: channels in and out.
            levels: K, sub-codes of bits / levels bits.
            entropy: weight of the bits' entropy; above 0: towards bits that are sure.

        Raises:
            ValueError: levels do not divide bits.
        """
        each = bits_per_level(bits, levels)
        super().__init__(width, None, (1 << each,) * levels)
        self.bits, self.each, self.entropy = bits, each, entropy
        self.logits = nn.Linear(width, bits)
        self.weight = nn.Parameter(torch.empty(bits, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.logits.reset_parameters()
        self.weight.normal_(std=self.bits**-0.5)

    def _draw(self, p: Tensor, rng: RowRNG) -> Tensor:
        """p float [B, M, bits] -> bool [B, M, bits], true with these probabilities."""
        return rng.fork("bits").uniform(*p.shape[1:]).to(p.device) < p

    def _sum(self, bits: Tensor) -> Tensor:
        """bits float [B, M, bits] -> vectors float32 [B, width, M]."""
        return (bits.contiguous() @ self.weight.float()).transpose(1, 2)

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """Bits are sampled in training where `rng` is given, else the likelier value is taken."""
        logits = F.linear(self.inward(z), self.logits.weight.float(), self.logits.bias.float())
        p = torch.sigmoid(logits)
        hard = self._draw(p.detach(), rng) if self.training and rng is not None else logits.detach() > 0
        codes, bits = without_unused_levels(from_bits(hard, self.each), straight_through(hard.to(p), p), n_levels)
        losses = {}
        if self.entropy:
            nats = F.softplus(logits) - logits * p
            losses["entropy"] = self.entropy * row_mean(nats, None if n_levels is None else n_levels > 0)
        return self.quantized(self._sum(bits), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """With gradient to the vectors of the bits."""
        self.check_codes(codes)
        return self._sum(to_bits(codes.clamp(min=0), self.each).float())
