"""Confidence-aware parallel decoding: every cell of which the network is certain enough, in one call.

Wu et al., "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel
Decoding", arXiv 2505.22618, section 3.3. With c the largest probability of a masked cell, a call reveals

    rule = threshold    every masked cell with c >= threshold
    rule = factor       the n most confident ones, n the largest with (n + 1) (1 - c_(n)) < factor,
                        c_(1) >= c_(2) >= ...

and at least the most confident one. Ids are then drawn from their distributions; the paper takes the most
probable ones (temperature = 0).

An approximation. What the paper proves is for temperature = 0: if n cells have c > 1 - e and (n + 1) e <= 1,
the most probable ids of the product and of the joint distribution agree. Confidence is the largest
probability of the model's own distribution, and not that of the id that was drawn (as MaskGIT's): so with one
cell per call (threshold > 1) the sampler is exact where conditionals agree.

block: the paper's semi-autoregressive decoding, in blocks of so many positions (32 there) in the order of the
grid: only the first block that has masked cells is revealed. The paper's caches of keys and values, which are
approximations, are not part of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.base import setting
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import PositiveFloat, PositiveInt

__all__ = ["RULES", "ConfidenceThreshold", "count_by_factor"]

RULES = ("threshold", "factor")


def count_by_factor(confidence: Tensor, factor: float) -> Tensor:
    """How many cells the factor rule reveals.

    Args:
        confidence: [b, C], falling along C, -inf beyond the masked cells.
        factor: of the rule.

    Returns:
        Tensor: int64 [b], the largest n with (n + 1) (1 - c_n) < factor; 0 where there is none.
    """
    n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
    return (n * ((n + 1) * (1 - confidence) < factor)).amax(1)


@dataclass(frozen=True)
class ConfidenceThreshold(UnmaskingSampler, id="sampler/confidence_threshold"):
    """Unmasking of all cells of which the network is certain.

    Args:
        rule: threshold or factor.
        threshold: > 0, of the largest probability; above 1: one cell per call.
        factor: > 0, of the factor rule.
        block: positions that are filled before later ones; None: all at once.
    """

    rule: str = setting("threshold", choices=RULES)
    threshold: PositiveFloat = 0.9
    factor: PositiveFloat = 1.0
    block: PositiveInt | None = None

    def unmask(self, state: UnmaskingState) -> None:
        state.until_full(lambda logits, masked: self._chosen(logits, self._in_first_block(masked)))

    def _in_first_block(self, masked: Tensor) -> Tensor:
        """bool [b, K, N]: the masked cells of each row's first block that has some."""
        if self.block is None:
            return masked
        number = torch.arange(masked.shape[2], device=masked.device) // self.block
        first = torch.where(masked, number, masked.shape[2]).flatten(1).amin(1)
        return masked & (number == first[:, None, None])

    def _chosen(self, logits: Tensor, masked: Tensor) -> Tensor:
        """bool [b, K, N]: the masked cells to be revealed, from logits [b, K, N, V]."""
        top = logits.double().masked_fill(~masked[..., None], 0.0).log_softmax(-1).amax(-1).exp()
        confidence, place = top.masked_fill(~masked, -torch.inf).flatten(1).sort(dim=1, descending=True, stable=True)
        if self.rule == "threshold":
            count = (confidence >= self.threshold).sum(1)
        else:
            count = count_by_factor(confidence, self.factor)
        taken = torch.arange(confidence.shape[1], device=place.device) < count.clamp(min=1)[:, None]
        return torch.zeros_like(taken).scatter(1, place, taken).view_as(masked)
