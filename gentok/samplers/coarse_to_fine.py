"""Coarse-to-fine sampling: labels by any sampler of causal models, then all ids in one pass of the refiner
(Guo et al., arXiv 2503.16194).

    labels c ~ p(c | y) by `coarse`             filtered and guided as its own settings say
    code_n   ~ p(code_n | c, y), all at once    filtered and guided as the settings here say

Exact where `coarse` is: the ids of an item of which nothing is known are drawn from the model's own (filtered,
guided) distribution, the sum over labels of p(labels) times the product over cells of p(code | labels), since the
cells are independent given the labels; for any layout and number of levels, and with items of different lengths in
one batch. Where the causal model ends items, their lengths are those of the labels.

Known cells give known labels, and the other labels are drawn given these, the other ids given all labels. What is
drawn is thus p(masked labels | known labels) p(masked ids | labels). The model's own distribution given the known
*ids* has one factor more, the probability of these ids given all labels, some of which are drawn: its logarithm is
the output's `log_weight`, by which weighted samples follow that distribution. Without `members` in the model, a
known id may have other labels than its own, which is left out: that needs `forced`.

Rows join and leave a batch as they do in `coarse`, and are refined when they leave it. A row's calls are those of its
labels and one; a row of which everything is known needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Causal, Refines
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import Sampler, sampler_name
from gentok.samplers.request import Arrivals, Joining, OnStep, SampleOutput, SampleRequest
from gentok.types import UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["CoarseToFineSampler"]


@dataclass(frozen=True)
class CoarseToFineSampler(Sampler, id="sampler/coarse_to_fine"):
    """Labels first, then all ids at once. Temperature and filters act on the ids given the labels.

    Args:
        coarse: the sampler of the labels, of causal models, with a temperature and filters of its own; None:
            autoregressive, with the temperature and filters that are set here.
        forced: with known cells, run where the model's ids are not restricted to the clusters of their labels; the
            output's stats then hold forced = True.

    Raises:
        ValueError: `coarse` is not a sampler of causal models.
    """

    requires = Refines
    exact = True

    coarse: Sampler | None = None
    forced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse is None:
            object.__setattr__(self, "coarse", AutoregressiveSampler(**self._filters))
        elif not issubclass(Causal, self.coarse.requires):
            name, needs = sampler_name(type(self.coarse)), self.coarse.requires.__name__
            raise ValueError(f"sampler.coarse={name} is of {needs} generators, labels are drawn from a Causal one: choose autoregressive")
        object.__setattr__(self, "joins", self.coarse.joins)

    def with_models(self, load: Callable[[str], Any]) -> CoarseToFineSampler:
        return replace(self, coarse=self.coarse.with_models(load))

    def run(self, request: SampleRequest) -> SampleOutput:
        model, tokens = request.model, request.tokens
        completes = bool((tokens.present.flatten(1).any(1) & tokens.masked.flatten(1).any(1)).any())
        forced = completes and self._check_members(model)
        given = Tokens(model.labels(tokens.codes), model.coarse.spec, tokens.lengths)
        if request.arrivals is not None:
            return _Refining(self, request).output()
        first = self._labels(request, lambda _, step, steps: request.report(tokens.codes, step, steps + 1), known=given)
        labels, stats = first.tokens, first.stats | ({"forced": True} if forced else {})
        here = tokens.masked & labels.present
        codes = torch.where(labels.present, tokens.codes, labels.codes)  # where an item has ended, nothing is
        drawn = here.flatten(1).any(1).nonzero()[:, 0]
        calls, log_weight = first.calls.clone(), torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for rows in drawn.split(request.at_once or len(drawn)) if len(drawn) else ():
            logits, ids = self._refine(request, labels.rows(rows), request.condition.rows(rows), request.rng.rows(rows), here[rows])
            codes[rows] = torch.where(here[rows], ids, codes[rows])
            calls[rows] += 1
            if completes:
                log_weight[rows] = self._log_known(logits, tokens.codes[rows])
            request.report(codes, int(calls.max()), int(calls.max()))
        output = request.output(Tokens(codes, tokens.spec, labels.lengths), calls, **stats)
        return replace(output, log_weight=log_weight) if completes else output

    def _labels(self, request: SampleRequest, on_step: OnStep, **options: Any) -> SampleOutput:
        """What `coarse` draws. options: of its call."""
        model, choose = request.model.coarse, request.choose
        if request.at_once is not None:
            options["at_once"] = request.at_once
        first = self.coarse(model, request.condition, rng=request.rng, choose=choose, on_step=on_step, **options)  # type: ignore[misc]
        for name, calls in first.network_calls.items():
            request.network_calls.merge({"coarse" if name == "generator" else f"coarse {name}": calls})
        return first

    def _refine(
        self, request: SampleRequest, labels: Tokens, condition: Condition, rng: RowRNG, here: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [b, K, N, V] and ids int64 [b, K, N], drawn in the cells `here`, of rows with all their labels."""
        logits = request.model.logits(labels, condition)
        request.network_calls.add(request.model, labels.codes.shape[0] * labels.codes.shape[2], "refiner")
        asked = self.filter(logits.masked_fill(~here[..., None], 0.0))  # other cells may hold anything
        return logits, request.choose(asked, rng)

    def _check_members(self, model: Refines) -> bool:
        """Whether known ids may have other labels than their own. Raises ValueError then, unless forced."""
        if not model.members and not self.forced:
            raise ValueError(
                f"a known id may have any label in this {type(model).__name__}, whose ids are not restricted to the clusters of their "
                "labels: train it with generator.members=true, or set sampler.forced=true to take each known id's own label"
            )
        return not model.members

    def _log_known(self, logits: Tensor, codes: Tensor) -> Tensor:
        """float64 [b]: log p of the known ids of codes int64 [b, K, N] given all labels."""
        known = codes >= 0
        log_p = self.filter(logits.masked_fill(~known[..., None], 0.0)).log_softmax(-1)
        return log_p.gather(3, codes.clamp(min=0)[..., None])[..., 0].masked_fill(~known, 0.0).sum((1, 2))


class _Refining(Arrivals):
    """Between those who join and leave and the sampler of labels: rows whose labels are drawn are refined, and then leave."""

    def __init__(self, sampler: CoarseToFineSampler, request: SampleRequest):
        self._sampler, self._request, self._arrivals, self._condition = sampler, request, request.arrivals, request.condition
        self._made: dict[int, tuple[Tensor, int]] = {}  # row -> its codes and calls
        self._seen: tuple[Tokens, int, int] | None = None

    def output(self) -> SampleOutput:
        """What is drawn when nobody is left."""
        first = self._sampler._labels(self._request, self._see, lengths=self._request.tokens.lengths, arrivals=self)
        codes, calls = zip(*(self._made[row] for row in range(len(self._made))))
        whole = Tokens(torch.stack(codes), self._request.tokens.spec, first.tokens.lengths)
        return self._request.output(whole, torch.tensor(calls, device=whole.codes.device), **first.stats)

    def join(self, room: int) -> Joining | None:
        new = self._arrivals.join(room)  # type: ignore[union-attr]
        if new is not None:
            self._condition = Condition.concat([self._condition, new.condition])
        return new

    def leave(self, rows: list[int], tokens: Tokens, calls: list[int], rng: RowRNG) -> None:
        codes = tokens.codes.clone()
        drawn = tokens.present.flatten(1).any(1).nonzero()[:, 0]
        if len(drawn):
            condition = self._condition.rows(torch.tensor(rows, device=codes.device)[drawn])
            labels = tokens.rows(drawn)
            _, ids = self._sampler._refine(self._request, labels, condition, rng.rows(drawn), labels.present)
            codes[drawn] = torch.where(labels.present, ids, labels.codes)
        calls = [count + (i in drawn.tolist()) for i, count in enumerate(calls)]
        self._made |= dict(zip(rows, zip(codes, calls)))
        if self._seen is not None:
            self._see(*self._seen)
        self._arrivals.leave(rows, Tokens(codes, self._request.tokens.spec, tokens.lengths), calls, rng)  # type: ignore[union-attr]

    def _see(self, labels: Tokens, step: int, steps: int) -> None:
        """Reports the rows that are refined, and of the others that nothing is drawn yet."""
        self._seen = labels, step, steps
        codes = labels.codes.masked_fill(labels.present, UNKNOWN)
        for row, (made, _) in self._made.items():
            if row < len(codes):  # one without a cell leaves before it is seen
                codes[row] = made
        self._request.report(Tokens(codes, self._request.tokens.spec, labels.lengths), step, steps + 1)
