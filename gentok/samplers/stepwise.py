"""Filling a grid in T steps: all masked cells are predicted in each, as many as a schedule says are kept.
What MaskGIT and ResGen share.

Each row counts its own masked cells; a row without any left leaves the batch. Known cells are never touched.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import rank_in_row
from gentok.samplers.base import Sampler, setting
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import NonNegativeFloat, PositiveInt

__all__ = ["SCHEDULES", "StepState", "StepwiseSampler", "masked_counts"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
}
"""gamma(r), the share of cells that is still masked at progress r: 1 at 0, 0 at 1."""


def masked_counts(n_masked: Tensor, steps: int, schedule: str = "cosine") -> Tensor:
    """How many cells are masked after each step.

    The number falls by at least one per step until it is 0. That is after min(steps, n_masked) steps at the
    latest, and not before the last step while more than one cell is masked.

    Args:
        n_masked: int64 [B], at the start.
        steps: T.
        schedule: one of SCHEDULES.

    Returns:
        Tensor: int64 [B, T].
    """
    out, masked = [], n_masked
    for i in range(1, steps + 1):
        # 1e-9: a share such as cos(pi/3) * 2 must not lose a whole cell to rounding
        target = (n_masked.double() * SCHEDULES[schedule](i / steps) + 1e-9).floor().long().clamp(min=1 if i < steps else 0)
        masked = torch.minimum(target, (masked - 1).clamp(min=0))
        out.append(masked)
    return torch.stack(out, 1)


@dataclass(frozen=True)
class StepState:
    """The rows that take part in a step.

    Attributes:
        request: of these b rows, with the tokens so far.
        masked: bool [b, K, N], the cells that the step may fill.
        left: int64 [b], how many of them it leaves masked.
        progress: the share of the steps that is done with this one, in (0, 1].
    """

    request: SampleRequest
    masked: Tensor
    left: Tensor
    progress: float


@dataclass(frozen=True)
class StepwiseSampler(Sampler):
    """A sampler that fills the grid in T steps, of which each keeps some of its predictions.

    Args:
        steps: network calls at most, T.
        schedule: of the share that is still masked, one of SCHEDULES.
        choice_temperature: c >= 0, how random the choice of cells is; it is annealed to 0.
    """

    exact = False
    any_known = True

    steps: PositiveInt = 12
    schedule: str = setting("cosine", choices=SCHEDULES)
    choice_temperature: NonNegativeFloat = 4.5

    def run(self, request: SampleRequest) -> SampleOutput:
        codes, parts = request.tokens.codes, self.parts(request)
        plan = []  # (part, share of its steps done, the rows that take part bool [B], masked cells left after it int64 [B])
        for masked, steps in parts:
            counts = masked_counts(masked.sum((1, 2)), steps, self.schedule)
            before = torch.cat([masked.sum((1, 2))[:, None], counts[:, :-1]], 1)
            plan += [(masked, (i + 1) / steps, before[:, i] > 0, counts[:, i]) for i in range(steps)]
        active = torch.stack([taking for _, _, taking, _ in plan], 1)
        total, done = int(active.any(0).sum()), 0
        for part, progress, taking, left in plan:
            rows = taking.nonzero()[:, 0]
            if not len(rows):
                continue
            of_rows = request.rows(rows, codes)
            state = StepState(of_rows, part[rows] & of_rows.tokens.masked, left[rows], progress)
            codes, done = codes.index_copy(0, rows, self.step(state)), done + 1
            request.report(codes, done, total)
        return request.output(codes, active.sum(1))

    def parts(self, request: SampleRequest) -> Sequence[tuple[Tensor, int]]:
        """What is filled one after the other, each in its own steps: (masked cells bool [B, K, N], steps);
        together all masked cells."""
        return [(request.tokens.masked, self.steps)]

    @abstractmethod
    def step(self, state: StepState) -> Tensor:
        """One network call, added to the request's: codes int64 [b, K, N] after it, in which all but `left`
        of the masked cells are filled."""

    def kept(self, score: Tensor, state: StepState) -> Tensor:
        """Which cells stay filled: those of the highest scores after this step's Gumbel noise.

        Args:
            score: float64, broadcasts to [b, K, N].
            state: of the step.

        Returns:
            Tensor: bool [b, K, N].
        """
        masked = state.masked
        noisy = score + self.choice_temperature * (1 - state.progress) * state.request.rng.gumbel(*masked.shape[1:])
        rank = rank_in_row(noisy.masked_fill(~masked, torch.inf))
        return masked & (rank >= state.left[:, None, None])
