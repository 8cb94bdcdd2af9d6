"""K-SEQ: independent siblings of one q are accepted one after the other by p / (rho q) (Sun et al., SpecTr, arXiv 2310.15141,
algorithm 2). rho in [1, k] is the smallest number by which no id is accepted more often than p says; what is accepted is
at least 1 - 1/e of the optimum for such siblings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.samplers.sibling_rule import SiblingRule

__all__ = ["KSeq"]

HALVINGS = 50
"""Of the interval that rho lies in: its upper end is taken, and rho that is too large by 1e-15 is exact all the same."""


class KSeq(SiblingRule):
    """K-SEQ."""

    siblings = ("with_replacement",)

    def chances(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        q, k = q[..., 0, :], ids.shape[-1]
        low, high = torch.ones_like(p[..., :1]), torch.full_like(p[..., :1], k)
        for _ in range(HALVINGS if k > 1 else 0):
            middle = (low + high) / 2
            once, any_of_k = _accepted(p, q, middle, k)
            fits = any_of_k <= middle * once
            low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        once, any_of_k = _accepted(p, q, high, k)
        taken = torch.minimum(p / high, q) * torch.where(once > 0, any_of_k / once, 0.0)
        return p.gather(-1, ids) / (high * q.gather(-1, ids)), (p - taken).clamp(min=0)


def _accepted(p: Tensor, q: Tensor, rho: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The probabilities that one draft is accepted, and that one of k is: float64 [..., 1]."""
    once = torch.minimum(p / rho, q).sum(-1, keepdim=True).clamp(max=1)
    return once, 1 - (1 - once) ** k
