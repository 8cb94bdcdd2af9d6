"""The capability of masked models of residual codes; with all others in gentok/generators/base.py."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from gentok.flow.mixture import Mixture
from gentok.generators.capability import Capability
from gentok.types import Condition, Tokens

__all__ = ["CumulativeMasked"]


class CumulativeMasked(Capability):
    """A model of residual codes that predicts, at every position, the sum of the code vectors of its UNKNOWN
    levels."""

    rowwise = ("mixture",)

    @abstractmethod
    def mixture(self, tokens: Tokens, condition: Condition) -> Mixture:
        """The distribution of that sum at every position of tokens with UNKNOWN cells; unspecified where a
        position has none."""

    @abstractmethod
    def requantize(self, z: Tensor, tokens: Tokens) -> Tokens:
        """Quantizes sums.

        Args:
            z: float [B, N, D].
            tokens: codes int64 [B, K, N] with UNKNOWN cells.

        Returns:
            The tokens with codes in their UNKNOWN cells; all others stay.
        """
