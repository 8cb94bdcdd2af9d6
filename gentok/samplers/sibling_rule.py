"""What a rule for several drafts of one step is: siblings x_1 .. x_k of one place, of which one may be accepted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["SiblingRule", "in_turn"]


class SiblingRule(ABC):
    """A coupling of a step's drafts with p, in the form in which siblings are tried one after the other.

    Whatever is drawn must be a sample of p if the siblings were drawn as `siblings` says: the output is x_i where x_i is the first that is
    accepted, and a draw of `rest` where none is. A rule sees one step and knows nothing of trees.

    Attributes:
        siblings: of optimal_acceptance.SIBLINGS, how the drafts may be drawn; the first is the default.
    """

    siblings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def chances(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """With which chance each sibling is accepted.

        Args:
            p: float64 [..., V], what the model predicts.
            ids: int64 [..., K], the drafts in the order in which they were drawn.
            q: float64 [..., K, V], the distribution of each, given those before it.

        Returns:
            (float64 [..., K], the chance of each where none before it was accepted; float64 [..., V], the distribution, up to a
            factor, of the step where none was: 0 everywhere where that cannot be).
        """

    def accepts(self, p: Tensor, ids: Tensor, q: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `chances`. The distribution is None where it would cost extra: `chances` then gives it for the few places that need it."""
        return self.chances(p, ids, q)


def in_turn(share: Tensor) -> Tensor:
    """The chances of a rule that accepts one of k siblings, x_i with probability share[..., i]: float64 [..., K] -> [..., K]."""
    left = 1 - (share.cumsum(-1) - share)
    return torch.where(left > 0, share / left, 1.0).clamp(0, 1)
