"""Absorbing diffusion of discrete codes: every cell is masked once and for all at a random time,
independently of the others.

A schedule says when: alpha(t) = P(a cell is kept until t), falling from 1 at t = 0 to 0 at t = 1. Everything
here is written in the masked share m(t) = 1 - alpha(t), which is the distribution function of the time at
which a cell is masked (Austin et al., arXiv 2107.03006; Sahoo et al., MDLM, arXiv 2406.07524; Shi et al.,
MD4, arXiv 2406.04329):

    linear          m = t                                  (MDLM's log-linear one: sigma = -log(1 - t))
    cosine          m = sin(pi t / 2)                      (MaskGIT's and MD4's)
    arccos          m = arccos(1 - t) / (pi / 2)           (TiTok's and Halton-MaskGIT's)
    polynomial:w    m = t^w; w = 2 where it is left out    (MD4)
    geometric:a:b   alpha = exp(-a^(1-t) b^t), rescaled so that m(0) = 0 and m(1) = 1    (SEDD, MD4)
                    a = 1e-5, b = 20 where they are left out

The evidence bound on -log p(x) is

    L = int_0^1 m'(t) / m(t) E[ sum over masked cells i of -log p(x_i | x_t) ] dt

(MDLM eq. 10). By the substitution m = m(t) its value does not depend on the schedule, which decides only the
variance of an estimate at a random t. With m in place of t it is a mixture over the number n of masked cells,
and equals the any-order bound sum_n (1 / n) E_{|M| = n}[sum over M] for a network that is not given the time
(Ou et al., arXiv 2406.03736; Zheng et al., 2409.02908).

*Deviations*: ends are exact. MDLM stops at m = 1 - 1e-3, and the papers' geometric schedule at alpha(0) = 1 -
1e-5 and alpha(1) = 2e-9: the value of the bound would then depend on the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.errors import check_choice

__all__ = ["MaskSchedule", "mask_schedule", "NAMES"]

NAMES = ("linear", "cosine", "arccos", "polynomial", "geometric")
_HALF_PI = math.pi / 2


@dataclass(frozen=True)
class MaskSchedule:
    """A schedule of the masked share. Its functions take and return float64 tensors of any shape.

    Attributes:
        name: one of NAMES.
        masked: t in [0, 1] -> m(t).
        slope: t -> m'(t), infinite where m is steep at an end.
        time: m -> t, the inverse of `masked`.
    """

    name: str
    masked: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]

    def weight(self, t: Tensor) -> Tensor:
        """The weight m'(t) / m(t) of the bound's integrand at t > 0."""
        return self.slope(t) / self.masked(t)

    def grid(self, steps: int) -> list[float]:
        """m at t = 1, 1 - 1/T, ..., 0: T + 1 falling numbers, the ends exactly 1 and 0."""
        t = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
        return [1.0, *self.masked(t[1:-1]).tolist(), 0.0]


def _linear() -> MaskSchedule:
    return MaskSchedule("linear", lambda t: t, torch.ones_like, lambda m: m)


def _cosine() -> MaskSchedule:
    return MaskSchedule(
        "cosine",
        lambda t: torch.sin(_HALF_PI * t),
        lambda t: _HALF_PI * torch.cos(_HALF_PI * t),
        lambda m: torch.arcsin(m) / _HALF_PI,
    )


def _arccos() -> MaskSchedule:
    return MaskSchedule(
        "arccos",
        lambda t: 2 * torch.arcsin(torch.sqrt(t / 2)) / _HALF_PI,  # arccos(1 - t), exact near 0
        lambda t: 1 / (_HALF_PI * torch.sqrt(t * (2 - t))),
        lambda m: 2 * torch.sin(_HALF_PI * m / 2).square(),
    )


def _polynomial(power: float = 2.0) -> MaskSchedule:
    if not power > 0:
        raise ValueError(f"the polynomial schedule needs a power > 0; got {power}")
    return MaskSchedule("polynomial", lambda t: t**power, lambda t: power * t ** (power - 1), lambda m: m ** (1 / power))


def _geometric(low: float = 1e-5, high: float = 20.0) -> MaskSchedule:
    if not 0 < low < high:
        raise ValueError(f"the geometric schedule needs 0 < a < b; got a = {low}, b = {high}")
    ratio = math.log(high / low)
    span = -math.expm1(low - high)  # m = (1 - exp(low - sigma)) / span, sigma = low (high / low)^t

    def masked(t: Tensor) -> Tensor:
        return -torch.expm1(-low * torch.expm1(ratio * t)) / span

    def slope(t: Tensor) -> Tensor:
        return ratio * low * torch.exp(ratio * t - low * torch.expm1(ratio * t)) / span

    def time(m: Tensor) -> Tensor:
        return torch.log1p(-torch.log1p(-m * span) / low) / ratio

    return MaskSchedule("geometric", masked, slope, time)


_MAKERS: dict[str, Callable[..., MaskSchedule]] = dict(zip(NAMES, (_linear, _cosine, _arccos, _polynomial, _geometric)))


def mask_schedule(name: str) -> MaskSchedule:
    """A schedule by its name and numbers.

    Args:
        name: such as cosine, polynomial:3 or geometric:1e-4:10.

    Raises:
        ValueError: there is no such schedule, or its numbers do not fit.
    """
    kind, *numbers = str(name).split(":")
    check_choice("masking schedule", kind, NAMES)
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise ValueError(f"the masking schedule {name!r} has a part that is not a number: polynomial:2, geometric:1e-5:20") from error
    try:
        return _MAKERS[kind](*values)
    except TypeError as error:
        raise ValueError(f"the masking schedule {name!r} has too many numbers; write polynomial:2 or geometric:1e-5:20") from error
