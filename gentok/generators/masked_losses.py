"""What a masked model is trained on: which cells are masked, how much each counts, and which time the network
is given.

    maskgit      ceil(gamma(u) C) of a row's C cells, u uniform, each masked cell counts one (MaskGIT, arXiv
                 2202.04200): no likelihood
    elbo         each cell is masked with probability m(t), t uniform in (0, 1), and counts m'(t) / m(t): the
                 continuous-time bound of MDLM and MD4 (flow/absorbing.py); the network is given m(t). One
                 unbiased estimate, in nats, per row
    any_order    n uniform in 1..C cells, each counts C / n: the same bound without a time (Uria et al., arXiv
                 1310.1757; Hoogeboom et al., arXiv 2110.02037; Ou et al., arXiv 2406.03736). It is the elbo
                 with the row's number of masked cells averaged out (no row without a masked cell, no weight
                 above C), so its gradient is less noisy; the network is given n / C

    by_level     a level q uniform in 1..K and a first position uniform in 0..N - 1: from there on
                 ceil(gamma(u) C) of the C cells of level q are masked and count one, those of deeper levels
                 are masked and count nothing, all others are known (SoundStorm, Borsos et al., arXiv
                 2305.09636, section 3.3): for samplers that go level by level, and continue what is given

MDLM's two substitutions hold by construction: a model has no logit for "masked" (zero masking probability),
and cells that are not masked have no term (they are carried over unchanged, and cost nothing). `carry_over`
writes the second one out, for the distribution of a whole row.

A row's time is drawn from its own stream. times = stratified spreads the numbers u of a batch evenly over (0,
1), each row's marginal distribution being the same (Kingma et al., arXiv 2107.00630, appendix I.1; MDLM calls
it antithetic): then, by intent, a row's time depends on which rows share the step, not on how they are spread
over processes (flow/times.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gentok.flow.absorbing import MaskSchedule, mask_schedule
from gentok.flow.random_cells import random_subset
from gentok.flow.times import Stratified, Times, Uniform
from gentok.rng import RowRNG

__all__ = ["OBJECTIVES", "SCHEDULES", "TIMES", "Hidden", "Objective", "carry_over", "objective"]

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda u: torch.cos(0.5 * math.pi * u),
    "arccos": lambda u: torch.arccos(u) / (0.5 * math.pi),
    "linear": lambda u: 1.0 - u,
}
"""MaskGIT's gamma: u float64 in (0, 1) -> the share of cells that is masked; gamma(u) = m(1 - u)."""

TIMES: dict[str, Times] = {"independent": Uniform(), "stratified": Stratified(Uniform())}


def carry_over(logits: Tensor, codes: Tensor) -> Tensor:
    """Makes known cells certain.

    Args:
        logits: float [B, K, N, V].
        codes: int64 [B, K, N] with UNKNOWN cells.

    Returns:
        The logits, at known cells 0 for their code and -inf for all others; those of ABSENT cells stay as
        they are.
    """
    own = torch.arange(logits.shape[-1], device=logits.device) == codes[..., None]
    certain = torch.zeros_like(logits).masked_fill(~own, float("-inf"))
    return torch.where((codes >= 0)[..., None], certain, logits)


@dataclass
class Hidden:
    """Which cells are masked.

    Attributes:
        cells: bool [B, K, N].
        weight: float64 [B], of each row's masked cells; None: all count one.
        time: float64 [B], which the network is given; None: the masked share of the row.
        counted: bool [B, K, N], the masked cells that have a loss; None: all.
    """

    cells: Tensor
    weight: Tensor | None = None
    time: Tensor | None = None
    counted: Tensor | None = None


class Objective:
    """What a training step masks.

    Attributes:
        name: one of OBJECTIVES.
        times: draws the numbers u, one of each row.
    """

    name: ClassVar[str]
    times: Times

    def at(self, codes: Tensor, u: Tensor, rng: RowRNG) -> Hidden:
        """Masks cells of codes int64 [B, K, N] for u float64 [B] in (0, 1)."""
        raise NotImplementedError

    def choose(self, codes: Tensor, rng: RowRNG) -> Hidden:
        """Masks cells of codes int64 [B, K, N], at random."""
        return self.at(codes, self.times(rng), rng)


@dataclass(frozen=True)
class MaskGITObjective(Objective):
    """ceil(gamma(u) C) cells."""

    gamma: Callable[[Tensor], Tensor]
    times: Times
    name = "maskgit"

    def at(self, codes: Tensor, u: Tensor, rng: RowRNG) -> Hidden:
        count = torch.ceil(self.gamma(u) * (codes >= 0).flatten(1).sum(1)).to(torch.int64).clamp(min=1)
        return Hidden(random_subset(codes >= 0, count, rng))


@dataclass(frozen=True)
class ElboObjective(Objective):
    """Every cell with probability m(u)."""

    schedule: MaskSchedule
    times: Times
    name = "elbo"

    def at(self, codes: Tensor, u: Tensor, rng: RowRNG) -> Hidden:
        share = self.schedule.masked(u)
        cells = (rng.uniform(*codes.shape[1:]) < share[:, None, None]) & (codes >= 0)
        return Hidden(cells, self.schedule.weight(u), share)


@dataclass(frozen=True)
class AnyOrderObjective(Objective):
    """floor(u C) + 1 cells."""

    times: Times
    name = "any_order"

    def at(self, codes: Tensor, u: Tensor, rng: RowRNG) -> Hidden:
        cells = (codes >= 0).flatten(1).sum(1)
        count = torch.minimum((u * cells).to(torch.int64) + 1, cells)
        return Hidden(random_subset(codes >= 0, count, rng), cells.double() / count.clamp(min=1))


@dataclass(frozen=True)
class ByLevelObjective(Objective):
    """A part of one level from a position on, and all deeper levels there."""

    gamma: Callable[[Tensor], Tensor]
    times: Times
    name = "by_level"

    @staticmethod
    def at_level(codes: Tensor, level: Tensor, first: Tensor, count: Callable[[Tensor], Tensor], rng: RowRNG) -> tuple[Hidden, Tensor]:
        """What is masked at a level from a position on.

        Args:
            codes: int64 [B, K, N].
            level: int64 [B].
            first: int64 [B], a position.
            count: from C int64 [B], the number of the row's cells of that level from `first` on, to how many
                of them are masked.
            rng: B rows of random numbers.

        Returns:
            What is masked, and C.
        """
        levels, positions = (torch.arange(n, device=codes.device) for n in codes.shape[1:])
        there = (codes >= 0) & (positions >= first[:, None, None])
        own = there & (levels[:, None] == level[:, None, None])
        cells = own.flatten(1).sum(1)
        counted = random_subset(own, count(cells), rng)
        return Hidden(counted | (there & (levels[:, None] > level[:, None, None])), counted=counted), cells

    def choose(self, codes: Tensor, rng: RowRNG) -> Hidden:
        u, present = rng.uniform(2), (codes >= 0).any(1)
        nth = (u[:, 1] * present.sum(1)).to(torch.int64)  # the first masked position, among those that are there
        first = (present.cumsum(1) <= nth[:, None]).sum(1)
        share = self.gamma(self.times(rng))
        level = (u[:, 0] * codes.shape[1]).to(torch.int64)
        return self.at_level(codes, level, first, lambda cells: torch.ceil(share * cells).to(torch.int64).clamp(min=1), rng)[0]


OBJECTIVES = ("maskgit", "elbo", "any_order", "by_level")


def objective(name: str, schedule: str, times: str) -> Objective:
    """Makes an objective.

    Args:
        name: one of OBJECTIVES.
        schedule: one of `gentok.flow.absorbing`; any_order does not use it.
        times: one of TIMES.

    Returns:
        Objective.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {name!r}")
    if times not in TIMES:
        raise ValueError(f"times must be one of {', '.join(TIMES)}; got {times!r}")
    if name == "any_order":
        mask_schedule(schedule)
        return AnyOrderObjective(TIMES[times])
    if name == "elbo":
        return ElboObjective(mask_schedule(schedule), TIMES[times])
    kind = ByLevelObjective if name == "by_level" else MaskGITObjective
    if schedule in SCHEDULES:
        return kind(SCHEDULES[schedule], TIMES[times])
    masked = mask_schedule(schedule).masked
    return kind(lambda u: masked(1 - u), TIMES[times])
