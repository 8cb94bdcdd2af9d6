"""The largest chance with which any rule can accept one of k drafts of a step, by how the drafts are drawn.

A rule chooses an id y ~ p given the drafts; it accepts where y is among them. What the best rule accepts is an optimal
transport with the cost "y is none of the drafts" (Sun et al., SpecTr, arXiv 2310.15141), and by its minimal cut

    min over sets A of    p(A) + 1 - P(all drafts lie in A)

(Hu et al., arXiv 2502.18779): y lies in A, or one of the drafts lies outside. Drafts that are drawn from one q, with
replacement or without, have their minimum at a set of the ids with the smallest p / q, so V + 1 sets are enough.

Deviations: P(all drafts lie in A) of draws without replacement is an integral over the times of a race of exponentials,
which are in the order of such draws; the sum that it equals has V^k terms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SIBLINGS", "optimal_acceptance", "ratios"]

SIBLINGS = ("without_replacement", "with_replacement", "greedy")
"""How k drafts of one step are drawn from q; greedy: the k - 1 most probable ids, and one draw of the others."""


def optimal_acceptance(p: Tensor, q: Tensor, k: int, siblings: str) -> Tensor:
    """The bound of all rules.

    Args:
        p: what the model predicts, float64 [..., V], summing to 1.
        q: what the drafts are drawn from, float64 [..., V], summing to 1.
        k: drafts of the step, >= 1.
        siblings: how they are drawn, of SIBLINGS. Where q has fewer than k possible ids, all of them are drafts.

    Returns:
        Tensor: float64 [...], in [0, 1].
    """
    if siblings == "greedy":
        top = torch.zeros_like(q).scatter(-1, q.topk(min(k - 1, q.shape[-1]), -1).indices, 1.0) * (q > 0)
        rest = q * (1 - top)
        rest = rest / rest.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        return (p * top + torch.minimum(p * (1 - top), rest)).sum(-1)
    order = ratios(p, q).argsort(dim=-1, stable=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    inside = _sums(q).clamp(max=1) ** k if siblings == "with_replacement" else _distinct_inside(q, k)
    return (_sums(p) + 1 - inside).amin(-1).clamp(0, 1)


def ratios(p: Tensor, q: Tensor) -> Tensor:
    """p / q, infinite where q = 0: float64 [..., V]."""
    return torch.where(q > 0, p / q, torch.inf)


def _sums(x: Tensor) -> Tensor:
    """The sums of the first 0 .. V numbers: [..., V] -> [..., V + 1]."""
    return F.pad(x.cumsum(-1), (1, 0))


def _distinct_inside(q: Tensor, k: int) -> Tensor:
    """P(k draws without replacement are all among the first n ids), for n = 0 .. V: [..., V] -> [..., V + 1].

    Id i arrives at an exponential time of rate q_i. All draws lie inside where k of the first n ids arrive before any other:
    the integral over the time t of the first arrival of the others, of rate r, is that of P(k arrivals inside) r exp(-r t).
    The trapezoidal rule in log t is exact to rounding, since the integrand is smooth there and vanishes at both ends.
    """
    step = 0.25
    t = torch.arange(-20.0, 42.0, step, dtype=torch.float64, device=q.device).exp()
    possible = (q > 0).sum(-1)
    outside = _sums(q.flip(-1)).flip(-1)  # r of every n; not 1 - the sum inside, which rounds
    count = q.new_zeros(*q.shape[:-1], len(t), k)  # P(0 .. k - 1 arrivals until t)
    count[..., 0] = 1
    wanted = torch.arange(k, device=q.device) < possible[..., None].clamp(max=k)  # fewer possible ids are all drawn
    out = [torch.zeros_like(q[..., 0])]
    for n in range(1, q.shape[-1] + 1):
        absent = (-q[..., n - 1, None] * t).exp()[..., None]
        count = count * absent + F.pad(count, (1, -1)) * (1 - absent)
        arrived = 1 - (count * wanted[..., None, :]).sum(-1)
        r = outside[..., n, None]
        integral = (arrived * (r * t) * (-r * t).exp()).sum(-1) * step
        out.append(torch.where(r[..., 0] > 0, integral, 1.0))
    return torch.stack(out, -1)
