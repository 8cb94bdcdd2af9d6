"""What a capability of generators is; they are in base.py."""

from __future__ import annotations

from abc import ABC
from typing import Any

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


def capabilities(model: Any) -> tuple[str, ...]:
    """Names of the capabilities of a generator or of its class."""
    cls = model if isinstance(model, type) else type(model)
    return tuple(c.__name__ for c in Capability.__subclasses__() if issubclass(cls, c))
