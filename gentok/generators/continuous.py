"""The capabilities of models that draw vectors: by a flow, group by group (xAR, arXiv 2502.20388), or by a diffusion each, in any order
(MAR, arXiv 2406.11838)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gentok.generators.capability import Capability
from gentok.types import Condition, Latents, Tokens

__all__ = ["Entities", "MaskedVectors"]


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


class MaskedVectors(Capability):
    """A model that draws any of N vectors given any others, each by a diffusion of its own (gentok/flow/diffusion.py).

    Attributes:
        channels: C, numbers of a vector.
    """

    channels: int

    @abstractmethod
    def split(self, tokens: Tokens | Latents) -> tuple[Tensor, Tensor]:
        """What is known of the vectors.

        Args:
            tokens: B items with UNKNOWN cells (NaN in Latents).

        Returns:
            float [B, N, C], anything where it is not known; and bool [B, N], which ones are.

        Raises:
            ValueError: a vector is known in part.
        """

    @abstractmethod
    def hidden(self, values: Tensor, known: Tensor, condition: Condition) -> Tensor:
        """What `denoise` is given of every vector: float [B, N, ...], of values float [B, N, C] where known bool [B, N], and of the B rows
        of a condition."""

    @abstractmethod
    def denoise(self, x: Tensor, t: int, hidden: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        """Predicts the noise in some vectors, each of which is given its own `hidden`, and no other vector.

        Args:
            x: float [..., C], at time t.
            t: of the diffusion, in 0..999.
            hidden: [..., *], of these vectors.
            progress: of the generation, in [0, 1], which the scale of guidance follows; for no other purpose.

        Returns:
            The noise, and v of its variance, float [..., C] each, in x's type.
        """

    @abstractmethod
    def finish(self, values: Tensor, known: Tensor, tokens: Tokens | Latents) -> Tokens | Latents:
        """Puts the vectors back.

        Args:
            values: float [B, N, C].
            known: bool [B, N], which ones are known or drawn.
            tokens: what the items started from; what is known there stays.

        Returns:
            The items; cells that need further vectors are as in `tokens`.
        """
