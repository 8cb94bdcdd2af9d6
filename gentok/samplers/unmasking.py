"""What the samplers of Masked models share: the rows of a batch while their holes are filled.

A row is computed only where it needs a prediction, and draws ids only for the cells that it reveals: from its own stream, in the order of
its cells, one group of equally many cells after the other over the batch. So what a row draws does not depend on the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Masked
from gentok.samplers.base import CellSampler, Choice, NetworkCalls, OnStep, SampleOutput, Sampler, draw
from gentok.types import UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["Unmasking", "UnmaskingSampler"]


class Unmasking:
    """codes int64 [B, K, N], written in place; begun int64 [B]: holes of each row at the start; free bool [B, K, N]: where they are; cells
    int64 [B]: all cells of a row that there are; calls int64 [B]: network calls that each row needed."""

    def __init__(
        self,
        sampler: Sampler,
        model: Masked,
        condition: Condition,
        rng: RowRNG,
        tokens: Tokens,
        choose: Choice = draw,
        on_step: OnStep | None = None,
    ):
        self.sampler, self.model, self.condition, self.rng = sampler, model, condition, rng
        self.codes, self.spec, self.lengths = tokens.codes, tokens.spec, tokens.lengths
        self.free = tokens.masked
        self.begun = self.free.sum((1, 2))
        self.cells = self.begun + tokens.present.sum((1, 2))
        self.calls = torch.zeros_like(self.begun)
        self.network = NetworkCalls()
        self.choose, self.on_step = choose, on_step

    def _everyone(self, rows: Tensor) -> bool:
        return len(rows) == len(self.codes)

    def rows(self, wanted: Tensor) -> Tensor:
        """bool [B] -> int64 [b]."""
        return wanted.nonzero()[:, 0]

    def masked(self, rows: Tensor) -> Tensor:
        """bool [b, K, N]: what is not filled yet."""
        return (self.codes if self._everyone(rows) else self.codes[rows]) == UNKNOWN

    def streams(self, rows: Tensor) -> RowRNG:
        return self.rng if self._everyone(rows) else self.rng.rows(rows)

    def told(self, share: Tensor, rows: Tensor) -> Tensor:
        """float64 [b]: the time of a network that uses it, where each cell that was a hole at the start is still one with probability
        `share` float64 [b]: the expected masked share of the row, known cells included."""
        return share * self.begun[rows] / self.cells[rows].clamp(min=1)

    def predict(self, rows: Tensor, time: Tensor | None = None) -> Tensor:
        """logits [b, K, N, V] of some rows, as one network call. time float64 [b]: what the network is told; default: the masked share."""
        everyone = self._everyone(rows)
        codes = self.codes if everyone else self.codes[rows]
        lengths = self.lengths if everyone or self.lengths is None else self.lengths[rows]
        if time is None:
            time = (codes == UNKNOWN).sum((1, 2)).double() / self.cells[rows].clamp(min=1)
        condition = self.condition if everyone else self.condition.rows(rows)
        logits = self.model.logits(Tokens(codes.clone(), self.spec, lengths), condition, time)
        self.calls[rows] += 1
        self.network.add(self.model, codes.numel())
        return logits

    def fill(self, rows: Tensor, logits: Tensor, cells: Tensor) -> None:
        """Draws the ids of `cells` bool [b, K, N] of some rows from their filtered laws and writes them."""
        laws, flat = logits.flatten(1, 2), cells.flatten(1)
        codes = self.codes.view(len(self.codes), -1)
        counts = flat.sum(1)
        for count in counts.unique().tolist():
            if not count:
                continue
            group = (counts == count).nonzero()[:, 0]
            places = flat[group].nonzero()[:, 1].view(len(group), count)
            ids = self.choose(self.sampler.filter(laws[group[:, None], places]), self.streams(rows[group]))
            codes[rows[group][:, None], places] = ids

    def until_full(self, chosen: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Fills what `chosen` picks, (logits [b, K, N, V], holes bool [b, K, N]) -> bool [b, K, N], at least one hole of each row, call by
        call until no row has holes."""
        done, rows = 0, self.rows(self.begun > 0)
        while len(rows):
            logits = self.predict(rows)
            self.fill(rows, logits, chosen(logits, self.masked(rows)))
            done += 1
            rows = rows[self.masked(rows).flatten(1).any(1)]
            self.step(done, done + int(self.masked(rows).sum((1, 2)).amax(0)) if len(rows) else done)

    def step(self, number: int, steps: int) -> None:
        """Tells `on_step` how far the batch is."""
        if self.on_step is not None:
            self.on_step(Tokens(self.codes.clone(), self.spec, self.lengths), number, steps)

    def output(self, **stats: Any) -> SampleOutput:
        tokens = Tokens(self.codes, self.spec, self.lengths).validate()
        return SampleOutput(tokens, self.calls, dict(self.network), stats=stats)


@dataclass(frozen=True)
class UnmaskingSampler(CellSampler):
    """A sampler of Masked models that fills holes by `fill`."""

    requires = Masked
    exact = False
    any_known = True

    def run(
        self, model: Masked, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None
    ) -> SampleOutput:
        filling = Unmasking(self, model, condition, rng, tokens, choose, on_step)
        self.fill(filling)
        return filling.output()

    @abstractmethod
    def fill(self, filling: Unmasking) -> None:
        """Fills all holes."""
