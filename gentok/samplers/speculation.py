"""The verification of speculative sampling (Leviathan et al., arXiv 2211.17192, algorithm 1).

Drafts x_j ~ q_j are kept from left to right, x_j with probability min(1, p_j(x_j) / q_j(x_j)); at the first
failure an id is drawn from norm((p_j - q_j)+) in its place. Where p_j is the verifier's distribution given
the drafts before x_j, the kept ids and that last one are samples of p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.types import RowRNG

__all__ = ["accepted", "left_over", "ratio", "residual"]


def ratio(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """p(x) / q(x): p, q float64 [..., V], x int64 [...] -> float64 [...]."""
    x = x[..., None]
    return (p.gather(-1, x) / q.gather(-1, x))[..., 0]


def accepted(p: Tensor, q: Tensor, drafts: Tensor, sure: Tensor, drafted: Tensor, rng: RowRNG) -> Tensor:
    """How many drafts are kept, from the left.

    Args:
        p: the verifier's distributions, float64 [b, W, V].
        q: those that the drafts were drawn from, float64 [b, W, V].
        drafts: int64 [b, W].
        sure: int64 [b], drafts from the left that are kept in any case.
        drafted: int64 [b], drafts that there are.
        rng: of these rows; W uniform numbers are drawn per row, whatever is sure.

    Returns:
        Tensor: int64 [b], those that are sure included.
    """
    place = torch.arange(p.shape[1], device=p.device)
    good = (rng.uniform(p.shape[1]) < ratio(p, q, drafts)) | (place < sure[:, None])
    return (good & (place < drafted[:, None])).to(torch.int64).cumprod(1).sum(1)


def left_over(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)+ of distributions float64 [..., V]; p itself where nothing is left, which rounding may cause."""
    rest = (p - q).clamp_(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Logits of norm((p - q)+), float64 [..., V]; see `left_over`."""
    return left_over(p, q).log()
