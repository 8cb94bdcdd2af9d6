"""Sampling under a hard constraint, step by step, with the weights that make it unbiased. For causal generators of one cell per step.

A constraint says of an item so far whether its last cell may stand: allowed ids, a grammar, a classifier of the finished item
(constraints.py). Every cell is drawn by adaptive weighted rejection (rejection.py), which asks about few ids. The constraint is met where
it can be met, but an item whose beginning leads into a corner is drawn too often: the output's `log_weight` makes up for it. For every
item x

    E[exp(log_weight) 1{item = x}] = p(x) valid(x)

so weighted items follow the model's distribution given the constraint, and the mean of exp(log_weight) is the probability of the
constraint. An item that met no valid id has log_weight = -inf and is not valid.

With several particles an item is drawn from that many at once, which are resampled by their weights where these differ much (sequential
Monte Carlo; systematic resampling below an effective share of the particles), and in the end one of them is chosen by weight. log_weight
is then the logarithm of the unbiased estimate of the constraint's probability, and the same holds for every x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.samplers.base import Sampler, check_known
from gentok.samplers.draws import check_finite
from gentok.samplers.rejection import weighted_rejection
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import Fraction, NonNegativeInt, PositiveInt
from gentok.types import ABSENT, UNKNOWN, RowRNG

__all__ = ["Accept", "Constrained"]

Accept = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(codes int64 [b, K, N] with the cell that is asked about and UNKNOWN behind it, its level [b], its position [b]) -> bool [b]."""


@dataclass(frozen=True)
class Constrained(Sampler, id="sampler/constrained"):
    """Adaptive weighted rejection sampling.

    Args:
        allowed: ids that cells may have; None: all.
        accept: from Python, a further constraint (`Accept`); its answers must depend on a row's own codes alone. None: none.
        particles: of an item, P >= 1.
        resample_below: of several particles, the share of P below which the effective number of them is resampled; 0: never.
        forced: run where known cells come after masked ones, which are then ignored, as in AutoregressiveSampler.
    """

    requires = Causal
    exact = True

    allowed: Sequence[NonNegativeInt] | None = None
    accept: Any = None
    particles: PositiveInt = 1
    resample_below: Fraction = 0.5
    forced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exact", self.allowed is None and self.accept is None)
        object.__setattr__(self, "revises", self.particles > 1)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Also whether a step is one cell, and items have the length that they are asked for."""
        if isinstance(model, type) or not super().fits(model):
            return super().fits(model)
        return model.layout.slots == 1 and not model.ends

    @classmethod
    def check_model(cls, model: Any) -> None:
        """As Sampler; also raises ValueError where a step has several cells, or items end by themselves."""
        super().check_model(model)
        if not cls.fits(model):
            what = "draws several cells in a step" if model.layout.slots > 1 else "ends items by itself"
            raise ValueError(f"the sampler constrained draws one cell after the other, and this {type(model).__name__} {what}")

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. stats: the ids that were asked about per cell (asked_per_cell), in the mean."""
        model, tokens, count = request.model, request.tokens, self.particles
        layout = model.layout
        if count > 1 and not model.moves_rows:
            raise ValueError(f"particles={count}: the rows of this {type(model).__name__} cannot be moved; set particles=1")
        forced = check_known(tokens, layout, self.forced)
        cloud = _Cloud(self, request)
        masked = cloud.ids == UNKNOWN  # [B P, S]
        steps = masked.any(0).nonzero()[:, 0].tolist()
        calls = masked[::count].sum(1)
        for number, step in enumerate(steps, 1):
            cloud.feed(step)
            rows = masked[:, step].nonzero()[:, 0]
            cloud.draw(rows, step)
            if count > 1:
                cloud.resample(masked[::count, step])
            if request.on_step is not None:
                request.report(layout.unflatten(cloud.ids[::count, :, None]), number, len(steps))
        codes, log_weight = cloud.chosen()
        cells = max(int(masked.sum()), 1)
        output = request.output(codes, calls, asked_per_cell=int(cloud.asked) / cells, **({"forced": True} if forced else {}))
        return replace(output, log_weight=log_weight)


class _Cloud:
    """All particles of a batch, B P rows. ids int64 [B P, S]: their steps; log_weight float64 [B P]: since they were resampled; total
    float64 [B]: the logarithm of what was gathered before."""

    def __init__(self, sampler: Constrained, request: SampleRequest):
        self.sampler, self.request, self.model, self.count = sampler, request, request.model, sampler.particles
        layout, codes = request.model.layout, request.tokens.codes
        self.ids = layout.flatten(codes)[..., 0].repeat_interleave(self.count, 0)
        device, batch = codes.device, len(codes)
        self.level, self.position = layout.level[:, 0].to(device), layout.position[:, 0].to(device)
        self.items = torch.arange(batch, device=device).repeat_interleave(self.count)
        self.rng = request.rng
        if self.count > 1:
            self.rng = RowRNG(request.rng.fork("particles").words(self.count).flatten())
        condition = request.condition if self.count == 1 else request.condition.rows(self.items)
        self.cache = self.model.init_cache(condition, len(self.ids), layout.steps) if len(self.ids) else None
        self.fed = 0
        self.log_weight = torch.zeros(len(self.ids), dtype=torch.float64, device=device)
        self.total = torch.zeros(batch, dtype=torch.float64, device=device)
        self.asked = torch.zeros((), dtype=torch.int64, device=device)
        self.allowed = None
        if sampler.allowed is not None:
            self.allowed = torch.zeros(self.model.spec.vocab, dtype=torch.bool, device=device)
            wrong = [i for i in sampler.allowed if i >= len(self.allowed)]
            if wrong:
                raise ValueError(f"allowed: there is no id {wrong[0]}; these tokens have 0 to {len(self.allowed) - 1}")
            self.allowed[list(sampler.allowed)] = True

    def feed(self, step: int) -> None:
        """Feeds all up to what predicts a step, of all rows, and keeps the logits float [B P, V]."""
        begin = self.model.begin.to(self.ids).expand(len(self.ids), 1)
        fed = torch.cat((begin, self.ids[:, :-1]), 1)[:, self.fed : step + 1, None]
        at = torch.full((len(self.ids),), self.fed)
        self.logits = self.model.logits(fed.masked_fill(fed == UNKNOWN, ABSENT), self.cache, at)[:, -1, 0]
        self.model.commit(self.cache, at)
        self.request.network_calls.add(self.model, fed.numel())
        self.fed = step + 1

    def draw(self, rows: Tensor, step: int) -> None:
        """Draws a step of some rows int64 [b]."""
        logits = self.sampler.filter(self.logits[rows])
        check_finite(logits.amax(-1), self.request.rng.rows(self.items[rows]), "distribution")
        order = (logits + self.rng.rows(rows).gumbel(logits.shape[-1])).argsort(1, descending=True)
        accept = self._accept(rows, step)
        self.ids[rows, step], log_weight, asked = weighted_rejection(logits, order, accept)
        self.log_weight[rows] += log_weight
        self.asked += asked.sum()

    def _accept(self, rows: Tensor, step: int) -> Callable[[Tensor, Tensor], Tensor]:
        layout, accept = self.model.layout, self.sampler.accept

        def answer(of: Tensor, ids: Tensor) -> Tensor:
            good = torch.ones_like(ids, dtype=torch.bool) if self.allowed is None else self.allowed[ids]
            left = good.nonzero()[:, 0]
            if accept is None or not len(left):
                return good
            whole = self.ids[rows[of[left]]]
            whole[:, step] = ids[left]
            level, position = self.level[step].expand(len(left)), self.position[step].expand(len(left))
            good[left] = accept(layout.unflatten(whole[..., None]), level, position)
            return good

        return answer

    def resample(self, drawn: Tensor) -> None:
        """Resamples the particles of items bool [B] that have just drawn, where their weights differ much."""
        log_w = self.log_weight.view(-1, self.count)
        possible = log_w.amax(1) > -torch.inf
        w = (log_w - log_w.amax(1, keepdim=True)).exp().nan_to_num(0.0)
        effective = w.sum(1).square() / w.square().sum(1).clamp(min=1e-300)
        again = (drawn & possible & (effective < self.sampler.resample_below * self.count)).nonzero()[:, 0]
        if not len(again):
            return
        place = torch.arange(self.count, device=w.device)
        u = (place + self.request.rng.rows(again).uniform()[:, None]) / self.count  # systematic
        cumulative = w[again].cumsum(1)
        parent = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=self.count - 1)
        source = torch.arange(len(self.ids), device=w.device).view(-1, self.count)
        source[again] = again[:, None] * self.count + parent
        self.ids, self.cache = self.ids[source.flatten()], self.model.take(self.cache, source.flatten())
        self.total[again] += _log_mean(log_w[again])
        log_w[again] = 0.0

    def chosen(self) -> tuple[Tensor, Tensor]:
        """(codes int64 [B, K, N] of one particle of each item, log weights float64 [B])."""
        layout, log_w = self.model.layout, self.log_weight.view(-1, self.count)
        if self.count == 1 or not len(log_w):
            return layout.unflatten(self.ids[..., None]), self.log_weight
        w = torch.where(log_w.amax(1, keepdim=True) > -torch.inf, (log_w - log_w.amax(1, keepdim=True)).exp(), 1.0)
        cumulative = w.cumsum(1)
        u = self.request.rng.uniform()[:, None] * cumulative[:, -1:]
        pick = torch.searchsorted(cumulative, u, right=True)[:, 0].clamp(max=self.count - 1)
        rows = torch.arange(len(log_w), device=w.device) * self.count + pick
        return layout.unflatten(self.ids[rows][..., None]), self.total + _log_mean(log_w)


def _log_mean(log_w: Tensor) -> Tensor:
    """log of the mean of exp, float64 [b, P] -> [b]."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])
