"""Lookup-free quantization: the signs of the channels are the bits of the code (Yu et al., MAGVIT-v2, arXiv
2310.05737, section 3.1).

    value_i = sign(x_i);    code = sum_i 2^i [x_i > 0];    q(c | x) ~ exp(-|x - c|^2 / temperature)
    loss = commitment * |x - sg value|^2 + entropy * (E[H(q(. | x))] - diversity * H(E[q(. | x)]))

q factorises over the bits, q_i = sigmoid(4 x_i / temperature), and so does the first entropy. The second is
that of the joint distribution: the batch's mean of q over 2^bits codes is one matrix product of the
distributions of the two halves, never a [vectors, 2^bits] table. Beyond `group_bits` bits the code is cut
into equal groups whose entropies are added, an upper bound (Open-MAGVIT2, BSQ). The mean is taken over all
processes.

Deviations: the sign of 0 is -1; temperature 1 by default, where the published code has 0.01, so that sure
bits still feel the loss.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gentok.codebooks.base import SingleLevel, straight_through
from gentok.codebooks.search import entropy_of_mean, position_weights, row_mean
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, PositiveFloat, PositiveInt

__all__ = ["LFQ"]

CHUNK = 8192
"""Vectors whose half distributions are held at once."""


class LFQ(SingleLevel, id="codebook/lfq"):
    """V = 2^bits codes, whose rows are all vectors of -1 and 1."""

    def __init__(
        self,
        bits: Annotated[int, Field(ge=1, le=62)],
        width: PositiveInt | None = None,
        entropy: NonNegativeFloat = 0.1,
        diversity: NonNegativeFloat = 1.0,
        commitment: NonNegativeFloat = 0.25,
        temperature: PositiveFloat = 1.0,
        group_bits: PositiveInt = 18,
    ):
        """There is no table.

        Args:
            bits: 1 to 62.
            width: channels in and out where they differ from `bits` (linear projections).
            entropy: weight of E[H(q)] - diversity * H(E[q]).
            diversity: see `entropy`.
            commitment: weight of the pull of the encoder to -1 and 1.
            temperature: of q, above 0.
            group_bits: longest group whose joint entropy is counted (memory 2^group_bits, and 2^(group_bits /
                2) per vector).

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__(bits, width, (1 << bits,))
        self.bits, self.entropy, self.diversity, self.commitment, self.temperature = bits, entropy, diversity, commitment, temperature
        groups = -(-bits // group_bits)
        self.groups = [len(part) for part in torch.arange(bits, device="cpu").tensor_split(groups)]
        self.register_buffer("place", torch.tensor([1 << i for i in range(bits)]), persistent=False)

    def rows(self, codes: Tensor) -> Tensor:
        return ((codes[..., None] & self.place) != 0).float() * 2 - 1

    def search(self, x: Tensor) -> Tensor:
        return ((x > 0) * self.place).sum(-1)

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codes = self.search(x.detach())
        value = self.rows(codes)
        losses = {"commitment": self.commitment * row_mean((x - value).square(), present)}
        if self.entropy:
            losses["entropy"] = self.entropy * self._entropy(x, present)
        return codes, straight_through(value, x), losses

    def _entropy(self, x: Tensor, present: Tensor | None) -> Tensor:
        """E[H] - diversity * H[E], in nats."""
        logits = 4 * x / self.temperature
        uncertainty = row_mean(_binary_entropy(logits).sum(-1), present)
        weight = position_weights(x, present)
        spread = x.new_zeros(())
        for part in logits.flatten(0, 1).split(self.groups, 1):
            spread = spread + entropy_of_mean(_sum_of_distributions(part, weight.flatten()), weight.sum())
        return uncertainty - self.diversity * spread


def _binary_entropy(logits: Tensor) -> Tensor:
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def _half_distribution(logits: Tensor) -> Tensor:
    """logits [n, k] of independent bits -> the distribution of their 2^k values [n, 2^k]; a single 1 where
    there are no bits."""
    distribution = logits.new_ones(len(logits), 1)
    for p in torch.sigmoid(logits).unbind(1):
        distribution = torch.cat([distribution * (1 - p)[:, None], distribution * p[:, None]], 1)
    return distribution


def _product(logits: Tensor, weight: Tensor) -> Tensor:
    cut = logits.shape[1] // 2
    return (_half_distribution(logits[:, :cut]) * weight[:, None]).T @ _half_distribution(logits[:, cut:])


def _sum_of_distributions(logits: Tensor, weight: Tensor) -> Tensor:
    """logits [n, k], weight [n] -> sum over n of the joint distributions, [2^(k // 2), 2^(k - k // 2)]; half
    distributions are recomputed for the backward pass where there are many vectors."""
    if len(logits) <= CHUNK:
        return _product(logits, weight)
    parts = zip(logits.split(CHUNK), weight.split(CHUNK))
    return sum(checkpoint(_product, part, w, use_reentrant=False) for part, w in parts)
