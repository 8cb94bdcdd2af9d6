"""What a capability of generators is; they are in base.py."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from gentok.types import ConditionSpec, TokenSpec

__all__ = ["Capability", "capabilities"]


class Capability(ABC):
    """What every generator shows to every sampler.

    Attributes:
        spec: the tokens that it models.
        condition_spec: what it is conditioned on.
    """

    spec: TokenSpec
    condition_spec: ConditionSpec
    rowwise: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that predict row by row and remember nothing: rows of several batches, whatever steps these are at, may go
    through one call, and are computed as they are alone."""
    branches: int = 1
    """Rows that a network computes for one row of the sampler; guidance computes two."""

    def arranged(self, tokens: Any) -> Capability:
        """This model as it fills the UNKNOWN cells of some items: itself, but for a model that has an order of its own for what is
        missing between known cells.

        Args:
            tokens: B items, as a sampler starts from them.

        Raises:
            ValueError: it has no order for these.
        """
        return self

    exits: tuple[int, ...] = ()
    """After how many of its blocks a causal model can also predict, as a smaller model of the same tokens."""

    def at_exit(self, depth: int) -> Capability:
        """The model of the first blocks, which shares all weights with this one.

        Args:
            depth: how many blocks, one of `exits`.

        Raises:
            ValueError: this model has no such exit.
        """
        where = f"it has exits after {', '.join(map(str, self.exits))} blocks" if self.exits else "train one with generator=early_exits"
        raise ValueError(f"this {type(self).__name__} has no exit after {depth} blocks: {where}")


def capabilities(model: Any) -> tuple[str, ...]:
    """Names of the capabilities of a generator or of its class."""
    cls = model if isinstance(model, type) else type(model)
    return tuple(c.__name__ for c in Capability.__subclasses__() if issubclass(cls, c))
