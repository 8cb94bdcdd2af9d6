"""The capability of models that go from noise to codes in one call (distilled decoding, arXiv 2412.17153)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from gentok.generators.capability import Capability
from gentok.types import Condition

__all__ = ["Jumps"]


class Jumps(Capability):
    """A model of one level that maps noise to codes, position by position from left to right: exactly with a teacher, in as many calls as
    there are positions, or nearly in a single call.

    Attributes:
        channels: C, of the noise of a position.
        split: the position from which a second call goes on, as it was trained.
        taught: whether it learns from its teacher's trajectories, which a training run then makes and keeps.
    """

    taught: ClassVar[bool] = True
    channels: int
    split: int

    @abstractmethod
    def jump(self, codes: Tensor, noise: Tensor, condition: Condition) -> Tensor:
        """One call of the student.

        Args:
            codes: int64 [B, 1, N]: known codes from the left, UNKNOWN behind them.
            noise: float [B, N, C], standard normal; read where a code is UNKNOWN.
            condition: B rows.

        Returns:
            float [B, 1, N, V]: logits of every code, of which the largest is the student's; unspecified at known cells.
        """

    @abstractmethod
    def follow(self, codes: Tensor, noise: Tensor, condition: Condition, span: range) -> Tensor:
        """The teacher's codes of some positions, a call each; exact.

        Args:
            codes: int64 [B, 1, N], of which those before `span` are known.
            noise, condition: as of `jump`.
            span: consecutive positions.

        Returns:
            int64 [B, 1, N]: the codes, where they were UNKNOWN within `span` the teacher's.
        """
