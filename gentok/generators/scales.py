"""The capability of models that predict the scales of a pyramid one after the other."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from gentok.generators.capability import Capability
from gentok.types import Condition

__all__ = ["NextScale"]


class NextScale(Capability):
    """A model of the tokens of a pyramid (spec.grid), whose cells of a scale are independent of one another given the
    scales before it: p(codes) = product over scales s and their cells n of p(code_n | scales before s).

    Scales are fed in order, each once; `logits` of scale s needs those before it in the cache.
    """

    @abstractmethod
    def init_cache(self, condition: Condition, batch: int) -> Any:
        """Makes a cache that holds no scale yet.

        Args:
            condition: B rows.
            batch: B.
        """

    @abstractmethod
    def logits(self, codes: Tensor, scales: range, cache: Any, own: bool = False) -> Tensor:
        """Feeds scales and predicts the last of them.

        Args:
            codes: int64 [B, 1, N], of which the cells before the last of `scales` are read, and may be ABSENT.
            scales: consecutive numbers; those before the first were fed to the cache, those from it on are
                overwritten.
            cache: from `init_cache`.
            own: the last scale, which is then the only one, is predicted given its own codes too (TokenFlow's
                second passes, arXiv 2412.03069). It must be fed again before the next one.

        Returns:
            float [B, n, V], of the last scale's cells.
        """
