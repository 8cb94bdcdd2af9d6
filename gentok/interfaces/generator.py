"""What a generator is. Its capabilities, which are all that a sampler may use, are in gentok/generators/base.py."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from gentok.interfaces.component import Component
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["Generator"]


class Generator(nn.Module, Component):
    """A model of tokens.

    Attributes:
        spec: the tokens that it models.
        condition_spec: what it is conditioned on.
        follows_grammar: whether ids that a grammar of the tokens forbids have probability 0.
        progress: share of the training that is over, in [0, 1]; set before every step, for losses that change over the run.
    """

    spec: TokenSpec
    condition_spec: ConditionSpec
    follows_grammar: ClassVar[bool] = False
    progress: float = 1.0

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """The training loss of one batch.

        Args:
            tokens: codes int64 [B, K, N] without UNKNOWN cells.
            condition: B rows of `condition_spec`.
            rng: row-wise random numbers; in training mode also for dropout and condition dropout.

        Returns:
            LossOutput: a mean, what it was averaged over, and named terms.
        """
        raise NotImplementedError

    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """float64 [B]: an upper bound of each row's nats, or the nats themselves (see the generator).

        samples: how many random draws it is averaged over, where it is a bound.
        """
        raise NotImplementedError
