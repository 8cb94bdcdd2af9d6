"""Greedy siblings: the k - 1 most probable ids of q, and one draw of the others; the optimal rule for them (Hu et al.,
arXiv 2502.18779).

Only the last sibling x is random. It is accepted with probability min(1, p(x) / q(x)), q its own distribution. Otherwise the step is
drawn from norm((p - q)+), and where that draw is one of the sure siblings, that sibling is accepted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.samplers.sibling_rule import SiblingRule, in_turn
from gentok.samplers.speculation import ratio

__all__ = ["GreedySiblings"]


class GreedySiblings(SiblingRule):
    """The optimal rule for greedy siblings."""

    siblings = ("greedy",)

    def chances(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        sure, q = ids[..., :-1], q[..., -1, :]
        last = ratio(p, q, ids[..., -1]).clamp(max=1)
        rest = (p - q).clamp(min=0)
        mass = rest.sum(-1, keepdim=True)
        again = (sure[..., :, None] == sure[..., None, :]).tril(-1).any(-1)  # q had too few ids
        share = torch.where(mass > 0, rest / mass, 0.0).gather(-1, sure) * (1 - last)[..., None] * ~again
        return in_turn(torch.cat((share, last[..., None]), -1)), rest.scatter(-1, sure, 0.0)
