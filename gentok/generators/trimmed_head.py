"""A head that scores some ids alone, as drafts of few ids need it (gentok/samplers/vocab_trim.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.nn.linear import product

__all__ = ["TrimmedHead"]


class TrimmedHead:
    """Some rows of a head.

    Args:
        weights: float [V_k, D], or more rows: those beyond the ids are always scored.
        kept: bool [V_k].
    """

    def __init__(self, weights: Tensor, kept: Tensor):
        beyond = torch.arange(len(kept), len(weights), device=weights.device)
        self.rows, self.size = torch.cat((kept.to(weights.device).nonzero()[:, 0], beyond)), len(weights)
        self.weights = weights[self.rows]

    def __call__(self, hidden: Tensor) -> Tensor:
        """float [..., D] -> logits [..., all rows], -inf where a row is not scored."""
        scores = product(hidden, self.weights)
        out = scores.new_full((*scores.shape[:-1], self.size), float("-inf"))
        out[..., self.rows] = scores
        return out
