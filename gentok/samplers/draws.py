"""Drawing one id of a distribution, and the refusal of what is no distribution. All samplers draw through
`checked`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from gentok.types import RowRNG

__all__ = ["Choice", "Mark", "check_finite", "checked", "draw", "exponential_race"]

Choice = Callable[[Tensor, RowRNG], Tensor]
"""(filtered logits [B, ..., V], random numbers of these B rows) -> ids int64 [B, ...]."""


class Mark(ABC):
    """A watermark, for samplers that draw the id of every cell once: numbers of a secret key take the place of the row's own
    (gentok/watermarks).

    Attributes:
        joins: whether rows may join a batch that it was started with.
    """

    joins: bool = False

    @abstractmethod
    def start(self, rng: RowRNG, positions: int) -> Mark:
        """The same for a batch.

        Args:
            rng: of its rows, whose places in the key come from a fork of it.
            positions: N of the items.

        Raises:
            ValueError: the key is too short for such items.
        """

    @abstractmethod
    def choose(self, logits: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> Tensor:
        """Ids of some cells of a batch that was started.

        Args:
            logits: float [b, ..., V].
            rng: of these b rows, a view on those that it was started with.
            level: int64, broadcasts to [b, ...].
            position: likewise.

        Returns:
            Tensor: ids, int64 [b, ...].
        """

    def gumbel(self, rng: RowRNG, level: Tensor, position: Tensor, vocab: int) -> Tensor | None:
        """The Gumbel numbers float64 [b, ..., vocab] of which `choose` takes argmax(logits + gumbel); None: it does something else."""
        return None


def draw(logits: Tensor, rng: RowRNG) -> Tensor:
    """One id per distribution, exact to float64, by one uniform number each: the inverse of the cumulative
    distribution.

    The id is the first whose cumulative weight exceeds u times the total. An id of probability 0 is never
    drawn. The same distribution as `exponential_race`, and much cheaper, since it needs one random number
    instead of V.

    Args:
        logits: float [B, ..., V].
        rng: of these B rows.

    Returns:
        Tensor: ids, int64 [B, ...].
    """
    logits = logits.double()
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    u = rng.uniform(*logits.shape[1:-1])[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, u, right=True)[..., 0]


def exponential_race(logits: Tensor, rng: RowRNG) -> Tensor:
    """One id per distribution: the winner of a race of exponentials, argmin E_v / p_v, in float64 (the
    Gumbel-max trick).

    Arguments and result are those of `draw`.
    """
    return (logits.double() - rng.exponential(*logits.shape[1:]).log()).argmax(-1)


def check_finite(largest: Tensor, rng: RowRNG, what: str) -> None:
    """Refuses numbers of a generator that are not finite.

    Args:
        largest: float [B, ...], the largest of each distribution's logits, or other numbers that must be
            finite.
        rng: of these B rows; it knows their numbers in the batch.
        what: what the numbers are, for the message.

    Raises:
        ValueError: one of them is NaN or infinite; the message names the first such row.
    """
    wrong = ~largest.isfinite()
    if bool(wrong.any()):
        row = int(rng.row_numbers[wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong][0])
        raise ValueError(
            f"the generator's {what} for row {row} of the batch is not finite (NaN, infinite, or no id possible): its weights are "
            "damaged or its precision is too low; check its loss, or sample in float32"
        )


def checked(choose: Choice) -> Choice:
    """`choose`, that raises ValueError with the row's number where a distribution has a NaN or an infinity,
    or no possible id."""

    def choose_checked(logits: Tensor, rng: RowRNG) -> Tensor:
        check_finite(logits.amax(-1), rng, "distribution")
        return choose(logits, rng)

    return choose_checked
