"""The capability of models that draw vectors by a flow, group by group (xAR, arXiv 2502.20388)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gentok.generators.capability import Capability
from gentok.types import Condition, Latents, Tokens

__all__ = ["Entities"]


class Entities(Capability):
    """A model that emits E entities in order: groups of vectors, each drawn by following a velocity field from noise at t = 1 to data at
    t = 0 (gentok/flow/path.py), given the entities before it.

    Attributes:
        sizes: n, how many vectors each of the E entities has.
        channels: C, numbers of a vector.
    """

    sizes: tuple[int, ...]
    channels: int

    @abstractmethod
    def split(self, tokens: Tokens | Latents) -> tuple[list[Tensor], Tensor]:
        """What is known of the entities.

        Args:
            tokens: B items with UNKNOWN cells (NaN in Latents).

        Returns:
            float [B, n, C] for each entity, anything where it is not known; and bool [B, E], which ones are.

        Raises:
            ValueError: a known cell lies in no entity that is wholly known.
        """

    @abstractmethod
    def init_cache(self, condition: Condition, batch: int) -> Any:
        """A cache of no entities, of a type of the model's own, for the B rows of a condition."""

    @abstractmethod
    def velocity(
        self, x: Tensor, t: float, index: int, cache: Any, clean: Sequence[Tensor] = (), progress: float = 1.0
    ) -> Tensor:  # fmt: skip
        """The velocity of an entity given all entities before it.

        Args:
            x: float [B, n, C], the entity at time t.
            t: in [0, 1].
            index: of the entity.
            cache: from `init_cache`.
            clean: float [B, n, C] each: the entities before it that the cache does not hold yet, at t = 0. They are computed in the same
                call, and the cache holds them from then on: with the first call of an entity comes the one before it.
            progress: of the generation, in [0, 1], which the scale of guidance follows; for no other purpose.

        Returns:
            float [B, n, C], in x's type.
        """

    @abstractmethod
    def finish(self, entities: Sequence[Tensor], tokens: Tokens | Latents) -> Tokens | Latents:
        """Puts the first entities back together.

        Args:
            entities: float [B, n, C] each, at t = 0, of all entities or of the first ones.
            tokens: what the items started from; what is known there stays.

        Returns:
            The items; cells that need further entities are as in `tokens`.
        """
