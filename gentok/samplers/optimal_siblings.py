"""The optimal rule for independent siblings of one q, in O(V log V): it accepts what optimal_acceptance.py says is possible.

A rule of two stages loses nothing (Khisti et al., arXiv 2410.18234): one of the drafts wins, by the drafts alone, and is
then accepted with probability min(1, p / w), where w is the distribution of the winner. Where it is rejected, the step is drawn
from norm((p - w)+). Two steps lead to a w of the most acceptance, with ids in the order of falling p / q, and Q_n the sum of the first
n of q:

1.  What w is to be. If the first id in the order always wins, the winner is one of the first n with probability
    D_n = 1 - (1 - Q_n)^k, and no rule can make it more. The minimal cut of optimal_acceptance.py splits the order: the ids before
    it are to win with min(p, a q), those behind it with max(p, b q), where a and b make the sums D at the cut and 1 - D. Of all
    optimal w it is the one nearest to q, so its sums stay below D everywhere, since those of some w do.
2.  How w is reached. Each draft draws a label of its id: the id itself or a partner's. The first label in the order wins, and
    equal labels draw lots. Ids share labels in pairs, so that labels are independent draws of q again: i and j give each
    other the probability m. Where i wins too often, D_i - D_(i-1) > w_i, it is paired with ids j behind it that win too seldom:
    m = T / (d_i - d_j), d_i = (D_i - D_(i-1)) / q_i, moves T from i to j. Surplus and lack are matched in order, which is the inverse
    transform martingale coupling (Jourdain and Margheriti, arXiv 1808.01390), and no id gives more than it has.

Labels are not drawn: given the drafts, each one's chance to win is a sum over labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gentok.samplers.optimal_acceptance import ratios
from gentok.samplers.sibling_rule import SiblingRule, in_turn

__all__ = ["OptimalSiblings", "winner"]

DUST = 1e-15
"""Shares that are smaller are rounding, and are not moved."""


class Labels(NamedTuple):
    """Pairs of ids that share labels, by places in the order.

    Attributes:
        giver, taker: int64 [..., E].
        share: float64 [..., E], the probability under q of what both give each other.
        wins: float64 [..., V], w: the probability that the winner is an id.
    """

    giver: Tensor
    taker: Tensor
    share: Tensor
    wins: Tensor


class OptimalSiblings(SiblingRule):
    """The optimal rule for independent siblings."""

    siblings = ("with_replacement",)

    def chances(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        share, wins = winner(p, ids, q[..., 0, :])
        accepted = (p.gather(-1, ids) / wins.gather(-1, ids)).clamp(max=1)
        return in_turn(share * accepted), (p - wins).clamp(min=0)


def winner(p: Tensor, ids: Tensor, q: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first stage: which of some independent drafts wins.

    Args:
        p: what is wanted, float64 [..., V]; it may sum to less than 1.
        ids: int64 [..., K], draws of q.
        q: float64 [..., V].
        there: bool [..., K], the drafts that there are, one at least; None: all.

    Returns:
        (float64 [..., K], each draft's chance to win, 0 of those that are not there; float64 [..., V], the distribution of the winner, w:
        no choice among so many drafts has a larger sum of min(p, w)).
    """
    order = ratios(p, q).argsort(dim=-1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(-1, order, torch.arange(p.shape[-1], device=p.device).expand_as(order))
    count = torch.full_like(p[..., :1], ids.shape[-1]) if there is None else there.sum(-1, keepdim=True)
    q_, there = q.gather(-1, order), torch.ones_like(ids, dtype=torch.bool) if there is None else there
    labels = _labels(p.gather(-1, order), q_, count)
    share = _winner(_label_distributions(rank.gather(-1, ids), q_, labels), there)
    return share, torch.zeros_like(p).scatter(-1, order, labels.wins)


def _labels(p: Tensor, q: Tensor, k: Tensor) -> Labels:
    """Of p, q float64 [..., V] in the order of falling p / q, and the numbers of drafts [..., 1]."""
    ahead = (q.cumsum(-1) - q).clamp(0, 1)
    first = (1 - ahead) ** k - (1 - ahead - q).clamp(min=0) ** k  # of D
    surplus = first - _wanted(p, q, first)
    gives, takes = surplus.clamp(min=0).cumsum(-1), (-surplus).clamp(min=0).cumsum(-1)
    ends = torch.cat((gives, takes), -1).sort(dim=-1).values
    moved = ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1]))
    middle, top = ends - moved / 2, p.shape[-1] - 1
    giver = torch.searchsorted(gives, middle, right=True).clamp(max=top)
    taker = torch.searchsorted(takes, middle, right=True).clamp(max=top)

    each = torch.where(q > 0, first / q, 0.0)
    fall = each.gather(-1, giver) - each.gather(-1, taker)
    most = torch.minimum(q.gather(-1, giver), q.gather(-1, taker))
    share = torch.where((moved > DUST) & (fall > 0), moved / fall, 0.0).clamp(max=most)
    lent = torch.zeros_like(q).scatter_add(-1, giver, share).scatter_add(-1, taker, share)
    fits = torch.where(lent > q, q / lent, 1.0)  # rounding alone makes it more than there is
    share = share * torch.minimum(fits.gather(-1, giver), fits.gather(-1, taker))
    change = share * fall
    return Labels(giver, taker, share, first.scatter_add(-1, giver, -change).scatter_add(-1, taker, change))


def _wanted(p: Tensor, q: Tensor, first: Tensor) -> Tensor:
    """w, if it can be had: the distribution of the winner of an optimal rule."""
    zero = torch.zeros_like(p[..., :1])
    p_sum, q_sum, reached = (torch.cat((zero, x.cumsum(-1)), -1) for x in (p, q, first))
    q_left = torch.cat((q.flip(-1).cumsum(-1).flip(-1), zero), -1)
    p_left = torch.cat((p.flip(-1).cumsum(-1).flip(-1), zero), -1)
    cut = (reached + p_left).argmin(-1, keepdim=True)
    n, place = torch.arange(p.shape[-1] + 1, device=p.device), torch.arange(p.shape[-1], device=p.device)
    d, p_cut = reached.gather(-1, cut), p_sum.gather(-1, cut)
    above = (d - (p_cut - p_sum)) / q_sum  # sum of min(p, a q) before the cut = D there: the largest a of all numbers of ids with a q
    below = (1 - d - (p_sum - p_cut)) / q_left  # sum of max(p, b q) behind it = 1 - D: the smallest b
    a = torch.where((n <= cut) & (q_sum > 0), above, 0.0).amax(-1, keepdim=True)
    b = torch.where((n >= cut) & (q_left > 0), below, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=1.0)
    return torch.where(place < cut, torch.minimum(p, a * q), torch.maximum(p, b * q))


def _label_distributions(place: Tensor, q: Tensor, labels: Labels) -> Tensor:
    """The labels of ids at places int64 [..., K]: float64 [..., K, V]."""
    giver, taker, share = (x[..., None, :] for x in (labels.giver, labels.taker, labels.share))
    own = q.gather(-1, place)[..., None]
    out = torch.zeros(*place.shape, q.shape[-1], dtype=q.dtype, device=q.device)
    for this, other in ((giver, taker), (taker, giver)):
        out.scatter_add_(-1, other.expand(*place.shape, -1), torch.where(this == place[..., None], share / own, 0.0))
    kept = (1 - out.sum(-1, keepdim=True)).clamp(min=0)
    return out.scatter_add(-1, place[..., None], kept)


def _winner(labels: Tensor, there: Tensor) -> Tensor:
    """The probability that each draft has the first label, lots included: of labels float64 [..., K, V], and whether there is each
    draft, bool [..., K] -> [..., K].

    Lots are uniform numbers u: against a draft of label v and number u, another one loses with a later label, or with v and a
    larger number. The integral over u is that of a polynomial of degree k - 1, which Gauss's nodes take without error.
    """
    k = labels.shape[-2]
    nodes, weights = np.polynomial.legendre.leggauss((k + 1) // 2)
    later = labels.flip(-1).cumsum(-1).flip(-1) - labels
    total = torch.zeros_like(labels[..., 0])
    for u, weight in zip((nodes + 1) / 2, weights / 2):
        loses = torch.where(there[..., None], later + u * labels, 1.0)
        for i in range(k):
            others = torch.cat((loses[..., :i, :], loses[..., i + 1 :, :]), -2).prod(-2)
            total[..., i] += weight * (labels[..., i, :] * others).sum(-1)
    return total * there
