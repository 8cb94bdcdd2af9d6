"""What every sampler is: a frozen dataclass of hyper-parameters that turns a generator, a condition and noise into Tokens.

`requires` names the capability that the sampler needs; `exact` says whether it draws from the model's own (filtered, guided) law.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from gentok.generators.base import Capability, capabilities
from gentok.tokens import ABSENT, UNKNOWN, Condition, Noise, Tokens

__all__ = ["SampleOutput", "Sampler", "Choice", "draw", "race", "check_known"]

Choice = Callable[[Tensor, Noise], Tensor]
"""(logits [B, ..., V], noise) -> ids int64 [B, ...]."""


@dataclass
class SampleOutput:
    """tokens; calls int64 [B]: network calls that each row needed; network_calls: name -> (calls, positions computed over the batch)."""

    tokens: Tokens
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    log_weight: Tensor | None = None
    trace: Any = None
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler(ABC):
    """temperature >= 0 (0: the most probable id); top_k, top_p, min_p, typical: filters, off by default (see samplers/filters.py)."""

    requires: ClassVar[type[Capability]]
    exact: ClassVar[bool]

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None

    @abstractmethod
    def __call__(
        self,
        model: Any,
        condition: Condition,
        *,
        noise: Noise,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        """Draws noise.batch items.

        known: Tokens whose cells >= 0 are kept, UNKNOWN ones drawn. lengths int64 [B] in positions, for items shorter than the spec's.
        choose: how an id is drawn from filtered logits (default `draw`). on_step(tokens so far, step, steps): for progress and pictures.
        """
