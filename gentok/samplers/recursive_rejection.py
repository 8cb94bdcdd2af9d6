"""Recursive rejection sampling: siblings are tried one after the other, against what the ones before left.

x_i is accepted with probability min(1, r(x_i) / q_i(x_i)), where r is p at the first sibling and norm((r - q_i)+) behind each
that was rejected. For any q_i that x_i was drawn from, given the siblings before it: without replacement (Jeon et al.,
arXiv 2402.14160, constant width), with replacement, or guesses of a table. One sibling: Leviathan et al., arXiv 2211.17192.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentok.samplers.sibling_rule import SiblingRule
from gentok.samplers.speculation import left_over, ratio

__all__ = ["RecursiveRejection"]


class RecursiveRejection(SiblingRule):
    """Recursive rejection sampling.

    Args:
        chance: of a draft, by p, q float64 [..., V] and its id int64 [...]; only `ratio` is exact.
    """

    siblings = ("without_replacement", "with_replacement", "greedy")

    def __init__(self, chance: Callable[[Tensor, Tensor, Tensor], Tensor] = ratio):
        self.chance = chance

    def chances(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        chances, p = self._tried(p, ids, q)
        return chances, left_over(p, q[..., -1, :])

    def accepts(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, None]:
        return self._tried(p, ids, q)[0], None

    def _tried(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The chances, and what the last sibling is tried against."""
        out = []
        for i in range(ids.shape[-1]):
            if i > 0:
                rest = left_over(p, q[..., i - 1, :])
                p = rest / rest.sum(-1, keepdim=True)
            out.append(self.chance(p, q[..., i, :], ids[..., i]))
        return torch.stack(out, -1), p
