"""Confidence-aware parallel decoding: every cell of which the network is sure enough, in one call.

Wu et al., "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding", arXiv 2505.22618, section
3.3. With c the largest probability of a hole, a call reveals

    rule = threshold    every hole with c >= threshold
    rule = factor       the n surest holes, n the largest with (n + 1) (1 - c_(n)) < factor, c_(1) >= c_(2) >= ...

and at least the surest one. Ids are then drawn from their laws; the paper takes the most probable ones (temperature = 0).

An approximation. What the paper proves is for temperature = 0: if n holes have c > 1 - e and (n + 1) e <= 1, the most probable ids
of the product and of the joint law agree. Confidence is the largest probability of the model's own law, and not that of the id that was
drawn (as MaskGIT's): so with one cell per call (threshold > 1) the sampler is exact where conditionals agree.

block: the paper's semi-autoregressive decoding, in blocks of so many positions (32 there) in the order of the grid: only the first block
that has holes is revealed. The paper's caches of keys and values, which are approximations, are not part of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.unmasking import Unmasking, UnmaskingSampler

__all__ = ["RULES", "ConfidenceThreshold", "count_by_factor"]

RULES = ("threshold", "factor")


def count_by_factor(confidence: Tensor, factor: float) -> Tensor:
    """confidence [b, C], falling along C, -inf beyond the holes -> int64 [b]: the largest n with (n + 1) (1 - c_n) < factor."""
    n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
    return (n * ((n + 1) * (1 - confidence) < factor)).amax(1)


@dataclass(frozen=True)
class ConfidenceThreshold(UnmaskingSampler, id="sampler/confidence_threshold"):
    """rule: threshold or factor; threshold, factor: see above, each for its own rule. block: positions per block, null for all at once."""

    rule: str = "threshold"
    threshold: float = 0.9
    factor: float = 1.0
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in RULES:
            raise ValueError(f"there is no rule {self.rule!r}; choose one of {', '.join(RULES)}")
        if not self.threshold > 0 or not self.factor > 0:
            raise ValueError(f"threshold and factor must be > 0; got {self.threshold} and {self.factor}")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block must be >= 1 or null; got {self.block}")

    def fill(self, filling: Unmasking) -> None:
        filling.until_full(lambda logits, masked_cells: self._chosen(logits, self._open(masked_cells)))

    def _open(self, masked_cells: Tensor) -> Tensor:
        """bool [b, K, N]: the holes that may be revealed now."""
        if self.block is None:
            return masked_cells
        number = torch.arange(masked_cells.shape[2], device=masked_cells.device) // self.block
        first = torch.where(masked_cells, number, masked_cells.shape[2]).flatten(1).amin(1)
        return masked_cells & (number == first[:, None, None])

    def _chosen(self, logits: Tensor, masked_cells: Tensor) -> Tensor:
        """bool [b, K, N]: the holes to be revealed, from logits [b, K, N, V]."""
        top = logits.double().masked_fill(~masked_cells[..., None], 0.0).log_softmax(-1).amax(-1).exp()
        confidence, place = top.masked_fill(~masked_cells, -torch.inf).flatten(1).sort(dim=1, descending=True, stable=True)
        if self.rule == "threshold":
            count = (confidence >= self.threshold).sum(1)
        else:
            count = count_by_factor(confidence, self.factor)
        taken = torch.arange(confidence.shape[1], device=place.device) < count.clamp(min=1)[:, None]
        return torch.zeros_like(taken).scatter(1, place, taken).view_as(masked_cells)
