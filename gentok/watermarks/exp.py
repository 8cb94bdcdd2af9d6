"""EXP: the id with the largest log(xi_v) / p_v, where xi are uniform numbers of the key.

Kuditipudi et al., "Robust Distortion-free Watermarks for Language Models", arXiv 2307.15593, section 2.3. A race of exponentials (as in
samplers/draws.py) whose numbers are the key's: over the key every id has probability p_v. Marked ids have large xi, so that -log(1 - xi)
is large: for unmarked ones it is exponential with mean 1.

Deviations: the key's numbers are a function of (secret, place, id) instead of a stored table; the logits are compared as log p - log E,
the same race without xi^(1/p), which underflows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gentok.rng import RowRNG, uniform_of
from gentok.watermarks.base import PlacedWatermark, gumbel_of

__all__ = ["EXP"]


@dataclass(frozen=True)
class EXP(PlacedWatermark, id="watermark/exp"):
    """Exponential minimum sampling by the key's numbers; single items keep their distribution."""

    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        return (logits + gumbel_of(seed, place, logits.shape[-1])).argmax(-1)

    def gumbel(self, seed: Tensor, place: Tensor, vocab: int) -> Tensor:
        return gumbel_of(seed, place, vocab)

    def cost(self, seeds: Tensor, place: Tensor, symbols: Tensor, vocab: int) -> Tensor:
        return (-uniform_of(seeds, place, symbols)).log1p()
