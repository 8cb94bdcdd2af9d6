"""From noise to data along a velocity field: dx/dt = v(x, t), from t = 1 down to t = 0, on a grid of times.

    Euler          first order, one call a step     x += h v(x, t)
    Midpoint       second order, two calls          x += h v(x + h/2 v(x, t), t + h/2)
    Heun           second order, two calls          x += h/2 (v(x, t) + v(x + h v(x, t), t + h))
    EulerMaruyama  stochastic, one call             x += h (v(x, t) - w(t) score(x, t) / 2) + sqrt(w(t) |h|) z

with h = t_next - t < 0. The last is the reverse-time equation that has the flow's own marginals for any w >=
0 (Ma et al., SiT, arXiv 2401.08740, section 2.3); w(t) = 2 t as in xAR (arXiv 2502.20388). Its last step puts in
no noise, which would never be taken out, and is a plain Euler step: end the stochastic part with
`time_grid(steps, last=0.04)`. In the release of xAR the last step keeps the score (`drift_last`), which goes too
far: of data that are one point, x, it arrives at x - (w / 2) eps and not at x.

A solver is a frozen dataclass, called with the field, the noise x [B, ...], the S + 1 times and, where it
draws, a RowRNG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gentok.flow.path import score_of
from gentok.interfaces import Component
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat

__all__ = ["SOLVERS", "Euler", "EulerMaruyama", "Field", "Heun", "Midpoint", "Solver", "time_grid"]

Field = Callable[[Tensor, float], Tensor]
"""(x float [B, ...], t in [0, 1]) -> the velocity there, float [B, ...]."""


def time_grid(steps: int, start: float = 1.0, shift: float = 1.0, last: float | None = None) -> tuple[float, ...]:
    """Falling times from `start` to 0: equal steps of s, bent to t = shift s / (1 + (shift - 1) s) (SD3).

    Args:
        steps: S >= 1.
        start: of s, in (0, 1].
        shift: > 0; 1: equal steps of t; above 1: more of them near the noise.
        last: the s before 0, to which equal steps lead and from which one more leads to 0; None: all steps
            are equal.

    Returns:
        tuple[float, ...]: S + 1 times.

    Raises:
        ValueError: a value is out of its range.
    """
    if steps < 1:
        raise ValueError(f"a flow is solved in steps={steps}: give at least 1")
    if not 0 < start <= 1 or shift <= 0 or (last is not None and (steps < 2 or not 0 < last < start)):
        raise ValueError(
            f"a time grid needs 0 < last < start <= 1, shift > 0 and, with last, 2 steps; got {start=}, {shift=}, {last=}, {steps=}"
        )
    if last is None:
        even = [start * (steps - i) / steps for i in range(steps + 1)]
    else:
        even = [start + (last - start) * i / (steps - 1) for i in range(steps)] + [0.0]
    return tuple(shift * s / (1 + (shift - 1) * s) for s in even)


@dataclass(frozen=True)
class Solver(Component):
    """A way to solve the equation.

    Attributes:
        calls_per_step: network calls of a step.
    """

    calls_per_step = 1

    def __call__(self, field: Field, x: Tensor, times: tuple[float, ...], rng: RowRNG | None = None) -> Tensor:
        """Solves the equation.

        Args:
            field: the velocity.
            x: float [B, ...], at the first time.
            times: S + 1 falling times.
            rng: of B rows, for solvers that draw.

        Returns:
            Tensor: float [B, ...] at the last time, in x's dtype.

        Raises:
            ValueError: the solver draws, and there is no `rng`.
        """
        for t, following in zip(times[:-1], times[1:]):
            x = self.step(field, x, t, following)
        return x

    def step(self, field: Field, x: Tensor, t: float, following: float) -> Tensor:
        """x at t -> x at the time that follows."""
        raise NotImplementedError


@dataclass(frozen=True)
class Euler(Solver, id="solver/euler"):
    """First order, one call a step."""

    def step(self, field: Field, x: Tensor, t: float, following: float) -> Tensor:
        return x + (following - t) * field(x, t)


@dataclass(frozen=True)
class Midpoint(Solver, id="solver/midpoint"):
    """Second order, by the velocity in the middle of a step."""

    calls_per_step = 2

    def step(self, field: Field, x: Tensor, t: float, following: float) -> Tensor:
        h = following - t
        return x + h * field(x + h / 2 * field(x, t), t + h / 2)


@dataclass(frozen=True)
class Heun(Solver, id="solver/heun"):
    """Second order, by the mean of the velocities at both ends of a step."""

    calls_per_step = 2

    def step(self, field: Field, x: Tensor, t: float, following: float) -> Tensor:
        h = following - t
        first = field(x, t)
        return x + h / 2 * (first + field(x + h * first, following))


@dataclass(frozen=True)
class EulerMaruyama(Solver, id="solver/euler_maruyama"):
    """The stochastic solver.

    Args:
        diffusion: >= 0, of w(t) = diffusion * t; 0 makes it Euler.
        drift_last: whether the last step keeps the term of the score.
    """

    diffusion: NonNegativeFloat = 2.0
    drift_last: bool = False

    def __call__(self, field: Field, x: Tensor, times: tuple[float, ...], rng: RowRNG | None = None) -> Tensor:
        if rng is None:
            raise ValueError("EulerMaruyama draws random numbers: give it rng=RowRNG(seeds), or take Euler, Midpoint or Heun")
        for i, (t, following) in enumerate(zip(times[:-1], times[1:])):
            v, h, w = field(x, t), following - t, self.diffusion * t
            last = i == len(times) - 2
            if not last or self.drift_last:
                v = v - w / 2 * score_of(x, v, t)
            x = x + h * v
            if not last:
                x = x + (w * -h) ** 0.5 * rng.normal(*x.shape[1:]).to(x)
        return x


SOLVERS: dict[str, type[Solver]] = {"euler": Euler, "midpoint": Midpoint, "heun": Heun, "euler_maruyama": EulerMaruyama}
"""By the names that configurations have for them."""
