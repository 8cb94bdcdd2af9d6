"""ITS: the inverse of the cumulative distribution in an order of ids that the key knows, at a uniform number of the key.

Kuditipudi et al., arXiv 2307.15593, section 2.3. One uniform number u per place, and one permutation of all ids. The id is the first whose
cumulative probability in that order exceeds u; over the key it has the distribution p. The rank of a marked id in the order is near u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.rng import RowRNG, uniform_of
from gentok.watermarks.base import PlacedWatermark

__all__ = ["ITS"]

ORDER, NUMBER = 0, 1
"""What a seed's random numbers are for."""


def _order(seeds: Tensor, vocab: int) -> Tensor:
    """int64 [..., vocab]: the ids in the order of each seed int64 [...]."""
    numbers = torch.arange(vocab, device=seeds.device)
    return uniform_of(seeds[..., None], torch.full_like(numbers, ORDER), numbers).argsort(-1)


@dataclass(frozen=True)
class ITS(PlacedWatermark, id="watermark/its"):
    """Inverse transform sampling by the key's numbers; single items keep their distribution."""

    gap = 0.7

    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        order = _order(seed, logits.shape[-1])
        cumulative = (logits - logits.amax(-1, keepdim=True)).exp()[..., order].cumsum(-1)
        u = self._u(seed, place)[..., None] * cumulative[..., -1:]
        return order[torch.searchsorted(cumulative, u, right=True)[..., 0]]

    def cost(self, seeds: Tensor, place: Tensor, symbols: Tensor, vocab: int) -> Tensor:
        rank = _order(seeds.flatten(), vocab).argsort(-1)  # [R, V]
        return (self._u(seeds, place) - (rank[:, symbols] + 0.5) / vocab).abs()

    @staticmethod
    def _u(seeds: Tensor, place: Tensor) -> Tensor:
        return uniform_of(seeds, torch.full_like(place, NUMBER), place)
