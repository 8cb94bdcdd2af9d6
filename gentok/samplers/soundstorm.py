"""SoundStorm's decoding: level by level, coarse first, MaskGIT's within each.

Borsos et al., "SoundStorm: Efficient Parallel Audio Generation", arXiv 2305.09636, section 3.3. The first level is filled in `steps` calls
by confidence, as MaskGIT fills a grid (samplers/maskgit.py); each further level, which the ones before it nearly decide, in `later_steps`,
by default one. K levels take steps + (K - 1) later_steps calls, whatever the length.

For generators trained with objective=by_level: in every call the levels before are known, and the levels behind are not. An approximation
as far as several cells of a level are drawn in a call, and as MaskGIT is one. On a table of 2 levels of 3 cells whose conditionals are
exact the total variation distance is 0.39 with one call per level and 0.06 with one cell per call (`python tests/exact/distances.py`).

Deviation: the paper's further levels take the most probable id; here that is `later_temperature` = 0, and the default, 1, draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gentok.generators.base import Masked
from gentok.samplers.base import Choice, NetworkCalls, OnStep, SampleOutput
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.stepwise import StepState
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["SoundStorm"]


@dataclass(frozen=True)
class SoundStorm(MaskGIT, id="sampler/soundstorm"):
    """steps: of the first level; later_steps: of each further one. later_temperature: of their ids. schedule, choice_temperature: see
    gentok.samplers.stepwise."""

    steps: int = 16
    later_steps: int = 1
    later_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.later_steps < 1:
            raise ValueError(f"later_steps must be >= 1; got {self.later_steps}")
        if self.later_temperature < 0:
            raise ValueError(f"later_temperature must be >= 0; got {self.later_temperature}")

    def run(
        self, model: Masked, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None
    ) -> SampleOutput:
        level = torch.arange(tokens.spec.levels, device=tokens.codes.device)[:, None]
        parts = [(tokens.masked & (level == k), self.later_steps if k else self.steps) for k in range(tokens.spec.levels)]
        return self.rounds(model, condition, rng, tokens, parts, choose, on_step)

    def step(self, model: Masked, now: StepState, choose: Choice, calls: NetworkCalls) -> Tensor:
        own = self if bool(now.masked[:, 0].any()) else replace(self, temperature=self.later_temperature)
        return MaskGIT.step(own, model, now, choose, calls)
