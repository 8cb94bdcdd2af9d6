"""KGW: ids of a green list get larger logits. It changes what is drawn: the baseline of watermarks on images.

Kirchenbauer et al., "A Watermark for Large Language Models", arXiv 2301.10226: logits + delta on a share gamma of the ids, the green ones,
which appear in marked items more often than gamma.

Deviations: the green list is one for a key, as in Zhao et al., arXiv 2306.17439, and not a function of the id before it: an id that changes
when an item is encoded again would change the list of the next one. Detection asks the p-value of resampled keys, which is right where ids
repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gentok.rng import RowRNG, uniform_of
from gentok.samplers.draws import draw
from gentok.settings import NonNegativeFloat
from gentok.watermarks.base import Watermark

__all__ = ["KGW"]

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class KGW(Watermark, id="watermark/kgw"):
    """A green list; not distortion-free.

    Args:
        delta: what green logits get more, >= 0.
        gamma: the share of ids that are green, in (0, 1).
    """

    distortion_free = False

    delta: NonNegativeFloat = 2.0
    gamma: Share = 0.25

    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        green = self._green(seed, torch.arange(logits.shape[-1], device=logits.device))
        return draw(logits + self.delta * green, rng)

    def cost(self, seeds: Tensor, place: Tensor, symbols: Tensor, vocab: int) -> Tensor:
        return -self._green(seeds, symbols).double()

    def _green(self, seeds: Tensor, ids: Tensor) -> Tensor:
        return uniform_of(seeds, ids) < self.gamma
