"""Filling a grid in T steps: all holes are predicted in each, as many as a schedule says are kept. What MaskGIT and ResGen share.

Each row counts its own holes; a row without holes left leaves the batch. Known cells are never touched.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentok.flow.random_cells import rank_in_row
from gentok.samplers.base import CellSampler, Choice, NetworkCalls, OnStep, SampleOutput
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["SCHEDULES", "StepState", "StepwiseSampler", "masked_counts"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
}
"""gamma(r), the share of holes that is still masked at progress r: 1 at 0, 0 at 1."""


def masked_counts(masked_cells: Tensor, steps: int, schedule: str = "cosine") -> Tensor:
    """int64 [B, steps]: how many cells are masked after each step, for rows with `holes` int64 [B] at the start.

    Falls by at least one per step until it is 0, which it is after min(steps, holes) steps at the latest and not before the last step while
    more than one is masked.
    """
    out, masked = [], masked_cells
    for i in range(1, steps + 1):
        # 1e-9: a share such as cos(pi/3) * 2 must not lose a whole cell to rounding
        target = (masked_cells.double() * SCHEDULES[schedule](i / steps) + 1e-9).floor().long().clamp(min=1 if i < steps else 0)
        masked = torch.minimum(target, (masked - 1).clamp(min=0))
        out.append(masked)
    return torch.stack(out, 1)


@dataclass(frozen=True)
class StepState:
    """The rows that take part in a step. masked bool [B, K, N]: the cells that it may fill; left int64 [B]: how many of them it leaves;
    progress: the share of the steps that is done with it."""

    tokens: Tokens
    condition: Condition
    rng: RowRNG
    masked: Tensor
    left: Tensor
    progress: float


@dataclass(frozen=True)
class StepwiseSampler(CellSampler):
    """steps: network calls at most. schedule: one of SCHEDULES. choice_temperature: c >= 0, how much chance the choice of cells
    holds; it is annealed to 0."""

    exact = False
    any_known = True

    steps: int = 12
    schedule: str = "cosine"
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1; got {self.steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no masking schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature must be >= 0; got {self.choice_temperature}")

    def run(self, model: Any, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None) -> SampleOutput:
        return self.rounds(model, condition, rng, tokens, [(tokens.masked, self.steps)], choose, on_step)

    def rounds(
        self,
        model: Any,
        condition: Condition,
        rng: RowRNG,
        tokens: Tokens,
        parts: Sequence[tuple[Tensor, int]],
        choose: Choice,
        on_step: OnStep | None,
    ) -> SampleOutput:
        """Fills the parts, (holes bool [B, K, N], steps), one after the other, each in its own steps: disjoint, together all holes."""
        codes, calls = tokens.codes, NetworkCalls()
        plan = []  # (part, share of its steps done, who takes part bool [B], holes left after it int64 [B])
        for p, (masked_cells, steps) in enumerate(parts):
            begun = masked_cells.sum((1, 2))
            counts = masked_counts(begun, steps, self.schedule)
            before = torch.cat([begun[:, None], counts[:, :-1]], 1)
            plan += [(p, (i + 1) / steps, before[:, i] > 0, counts[:, i]) for i in range(steps)]
        busy = torch.stack([row for _, _, row, _ in plan], 1)
        total, done = int(busy.any(0).sum()), 0
        for (p, progress, taking, masked), everyone in zip(plan, busy.all(0).tolist()):
            rows = torch.arange(len(codes), device=codes.device) if everyone else taking.nonzero()[:, 0]
            if not len(rows):
                continue
            own = Tokens(codes[rows], tokens.spec, None if tokens.lengths is None else tokens.lengths[rows])
            own_noise, own_condition = (rng, condition) if everyone else (rng.rows(rows), condition.rows(rows))
            now = StepState(own, own_condition, own_noise, parts[p][0][rows] & own.masked, masked[rows], progress)
            codes, done = codes.index_copy(0, rows, self.step(model, now, choose, calls)), done + 1
            if on_step is not None:
                on_step(Tokens(codes, tokens.spec, tokens.lengths), done, total)
        out = Tokens(codes, tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, busy.sum(1), dict(calls))

    @abstractmethod
    def step(self, model: Any, now: StepState, choose: Choice, calls: NetworkCalls) -> Tensor:
        """One network call, added to `calls`: codes int64 [B, K, N] after it, in which all but `now.left` of each row's `now.masked` were
        filled."""

    def kept(self, score: Tensor, now: StepState) -> Tensor:
        """score float64 that broadcasts to [B, K, N] -> bool [B, K, N]: the holes that stay filled, those of the highest scores after this
        step's Gumbel noise."""
        noisy = score + self.choice_temperature * (1 - now.progress) * now.rng.gumbel(*now.masked.shape[1:])
        rank = rank_in_row(noisy.masked_fill(~now.masked, torch.inf))
        return now.masked & (rank >= now.left[:, None, None])
