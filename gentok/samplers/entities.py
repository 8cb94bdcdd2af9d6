"""xAR's sampling: entity by entity, each by solving its flow from noise to data (Ren et al., arXiv 2502.20388).

    for entity n = 1 .. E:
        x = temperature * normal numbers                                        t = 1
        follow v(x, t | clean entities before n) down to t = 0                  gentok/flow/solvers.py

Entities that are done stand in the context at t = 0; their keys and values are computed in the first call of the next entity and kept. So
there are E steps calls (twice as many of heun and midpoint), of which E - 1 are one entity wider.

euler_maruyama is the release's: equal steps from t = 1 to `last`, then one to 0. There the release keeps the score's term (`drift_last`),
which arrives beside the data by about `last` times the noise.

Guidance grows with the progress (n - 1) / (E - 1): with guidance_schedule=linear it is the release's 1 + (g - 1) (n - 1) / (E - 1), which
leaves the first entity unguided. `guide_first` makes it n / E. A single entity has progress 1. constant guides all alike.

NOT exact: a solver of finitely many steps is an approximation of the model's distribution, the better the more steps there are. Known cells
are kept where they are whole entities that come first; others are refused. Temperature and guidance have no meaning as a distribution here,
and filters none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gentok.flow.solvers import SOLVERS, EulerMaruyama, Solver, time_grid
from gentok.generators.base import Entities
from gentok.samplers.base import Sampler, setting
from gentok.samplers.draws import check_finite
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import NonNegativeFloat, PositiveInt
from gentok.types import Latents, Tokens

__all__ = ["EntitiesSampler"]


def _last(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"last={value}: the time before 0 is above 0 and below 1")


@dataclass(frozen=True)
class EntitiesSampler(Sampler, id="sampler/entities"):
    """Flows, one entity after the other.

    Args:
        temperature: >= 0, of the noise at t = 1: its standard deviation.
        steps: of the solver, for each entity.
        solver: euler, midpoint, heun or euler_maruyama.
        diffusion: >= 0, of euler_maruyama, w(t) = diffusion t.
        last: of euler_maruyama, the time before 0.
        drift_last: of euler_maruyama, whether its last step keeps the score's term, as the release does.
        guide_first: whether a growing guidance guides the first entity too.
    """

    requires = Entities
    exact = False

    steps: PositiveInt = 40
    solver: str = setting("euler_maruyama", choices=SOLVERS)
    diffusion: NonNegativeFloat = 2.0
    last: float = setting(0.04, parse=_last)
    drift_last: bool = False
    guide_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_filters()

    @property
    def passes(self) -> int:
        return self.steps * SOLVERS[self.solver].calls_per_step

    def _solver(self) -> tuple[Solver, tuple[float, ...]]:
        """The solver and its times."""
        if self.solver != "euler_maruyama":
            return SOLVERS[self.solver](), time_grid(self.steps)
        return EulerMaruyama(self.diffusion, self.drift_last), time_grid(self.steps, last=self.last if self.steps > 1 else None)

    def run(self, request: SampleRequest) -> SampleOutput:
        entities = len(request.model.sizes)
        values, known = request.model.split(request.tokens)
        first = _first(known)
        calls = (entities - first) * self.passes
        tokens, done, total = request.tokens, 0, sum(entities - n for n in first.unique().tolist())
        for start in first.unique().tolist():
            if start == entities:
                continue
            rows = (first == start).nonzero()[:, 0]
            begun = request.tokens.rows(rows)
            part = replace(request, condition=request.condition.rows(rows), rng=request.rng.rows(rows), tokens=begun)
            for drawn in self._drawn(part, [entity[rows] for entity in values[:start]]):
                tokens, done = _placed(tokens, rows, request.model.finish(drawn, begun)), done + 1
                request.report(tokens, done, total)
        return request.output(tokens, calls)

    def _drawn(self, request: SampleRequest, entities: list[Tensor]) -> Iterator[list[Tensor]]:
        """The entities so far, after each one that is drawn; at the start those that are known."""
        model, (solver, times) = request.model, self._solver()
        cache = model.init_cache(request.condition, request.rng.batch)
        pending = list(entities)  # not in the cache yet
        for index in range(len(entities), len(model.sizes)):
            field = self._field(request, cache, index, pending)
            noise = request.rng.normal(model.sizes[index], model.channels)
            x = solver(field, self.temperature * noise, times, request.rng)
            check_finite(x.abs().amax(-1), request.rng, "vector")
            entities, pending = [*entities, x], [x]
            yield entities

    def _field(self, request: SampleRequest, cache: object, index: int, pending: list[Tensor]) -> Callable[[Tensor, float], Tensor]:
        """The velocity of an entity; its first call also computes what is pending."""
        model, count = request.model, len(request.model.sizes)
        progress = (index + 1) / count if self.guide_first else index / (count - 1) if count > 1 else 1.0

        def field(x: Tensor, t: float) -> Tensor:
            request.network_calls.add(model, len(x) * sum(part.shape[1] for part in (*pending, x)))
            v = model.velocity(x, t, index, cache, tuple(pending), progress)
            pending.clear()
            return v

        return field


def _first(known: Tensor) -> Tensor:
    """known bool [B, E] -> int64 [B], the first entity to draw. Raises ValueError where a later one is known."""
    first = known.to(torch.int64).cumprod(1).sum(1)
    later = known & (torch.arange(known.shape[1], device=known.device) >= first[:, None])
    if bool(later.any()):
        b, n = later.nonzero()[0].tolist()
        raise ValueError(
            f"known entities must come before those to be drawn, but row {b} knows entity {n} and not entity {int(first[b])}: keep a "
            "region that begins the order, such as keep=top-half"
        )
    return first


def _placed(whole: Tokens | Latents, rows: Tensor, part: Tokens | Latents) -> Tokens | Latents:
    """`whole` with `part` in some of its rows."""
    if isinstance(whole, Latents):
        return Latents(whole.values.index_copy(0, rows, part.values), whole.spec, whole.lengths)
    return Tokens(whole.codes.index_copy(0, rows, part.codes), whole.spec, whole.lengths)
