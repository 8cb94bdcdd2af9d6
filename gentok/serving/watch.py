"""What a batch looks like while it is drawn: its codes after each step, and how likely the ids were that were drawn.

Drawing is the same with it, bit for bit: a watch looks at ids and takes no random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentok.rng import RowRNG
from gentok.samplers.base import Sampler
from gentok.samplers.draws import Mark, draw
from gentok.samplers.stepwise import StepwiseSampler
from gentok.types import Latents, Tokens, TokenSpec

__all__ = ["Changes", "Step", "Watch", "Watcher"]

_log = logging.getLogger("gentok")


@dataclass(frozen=True)
class Step:
    """A step of the items of one request.

    Attributes:
        first: the number of the first of these items in the request.
        tokens: so far, Tokens or Latents of these items.
        step, steps: the number of this step, and of all, as far as that is known.
        confidence: float [b, K, N], the probability that each id had when it was drawn, temperature, filters and guidance included;
            NaN where nothing was drawn. None: the sampler draws ids in other ways.
    """

    first: int
    tokens: Any
    step: int
    steps: int
    confidence: Tensor | None


Watcher = Callable[[Step], None]


class Watch:
    """Follows a batch of several requests.

    Args:
        parts: of each request in it the number of its first item in the batch, that of its items, and who watches; None: nobody.
        sampler: that draws.
        mark: a watermark; None: none.
        spec: of the items.
        likely: whether probabilities are kept, where the sampler lets them be seen.

    Attributes:
        options: of `Sampler.__call__`, through which it sees the batch.
    """

    def __init__(
        self, parts: Sequence[tuple[int, int, Watcher | None]], sampler: Sampler, mark: Mark | None, spec: TokenSpec, likely: bool = True
    ):
        self.parts, shape = list(parts), (sum(count for _, count, _ in parts), spec.levels, spec.positions)
        by_cell = likely and type(sampler).marks and sampler.marks  # says of what cell a draw is; ids of drafts are drawn in other ways
        whole_grids = likely and isinstance(sampler, StepwiseSampler) and mark is None
        self.confidence = torch.full(shape, torch.nan, dtype=torch.float64) if by_cell or whole_grids else None
        self.options: dict[str, Any] = {"on_step": self.on_step}
        if by_cell:
            self.options["mark"] = _Seen(self, mark)
        elif whole_grids:
            self.options["choose"] = self._choose

    def add(self, begin: int, count: int, watcher: Watcher | None) -> None:
        """Items that join the batch, behind the others; arguments as of `parts`."""
        self.parts.append((begin, count, watcher))
        if self.confidence is not None:
            self.confidence = torch.cat((self.confidence, torch.full((count, *self.confidence.shape[1:]), torch.nan, dtype=torch.float64)))

    def on_step(self, tokens: Tokens | Latents, step: int, steps: int) -> None:
        """As of `Sampler.__call__`. What a watcher raises is logged, and ends nothing."""
        first = 0
        for begin, count, watcher in self.parts:
            rows = torch.arange(first, first + count)
            first += count
            if watcher is None:
                continue
            own = tokens.rows(rows.to(tokens.codes.device if isinstance(tokens, Tokens) else tokens.values.device))
            try:
                watcher(Step(begin, own, step, steps, None if self.confidence is None else self.confidence[rows]))
            except Exception as error:
                _log.error("what follows a request failed", exc_info=error)

    def note(self, logits: Tensor, ids: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> None:
        """Keeps how likely ids int64 [b, ...] were under logits [b, ..., V]; level and position broadcast to [b, ...]."""
        assert self.confidence is not None
        rows = rng.row_numbers.cpu().view(-1, *[1] * (ids.dim() - 1)).expand(ids.shape)
        level, position = (cells.cpu().expand(ids.shape) for cells in (level, position))
        likely = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0].exp().cpu()
        there = (level >= 0) & (level < self.confidence.shape[1]) & (position >= 0) & (position < self.confidence.shape[2])
        self.confidence[rows[there], level[there], position[there]] = likely[there]

    def _choose(self, logits: Tensor, rng: RowRNG) -> Tensor:
        ids = draw(logits, rng)
        if logits.dim() == 4 and self.confidence is not None and logits.shape[1:3] == self.confidence.shape[1:]:
            levels, positions = logits.shape[1:3]
            self.note(logits, ids, rng, torch.arange(levels)[:, None], torch.arange(positions))
        return ids


class _Seen(Mark):
    """A watermark, or plain draws, that are noted."""

    def __init__(self, watch: Watch, inner: Mark | None):
        self.watch, self.inner, self.joins = watch, inner, inner is None

    def start(self, rng: RowRNG, positions: int) -> Mark:
        return _Seen(self.watch, None if self.inner is None else self.inner.start(rng, positions))

    def choose(self, logits: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> Tensor:
        ids = draw(logits, rng) if self.inner is None else self.inner.choose(logits, rng, level, position)
        self.watch.note(logits, ids, rng, level, position)
        return ids

    def gumbel(self, rng: RowRNG, level: Tensor, position: Tensor, vocab: int) -> Tensor | None:
        return None if self.inner is None else self.inner.gumbel(rng, level, position, vocab)


class Changes:
    """From the steps of a request to the cells that each of them drew or took back. A watcher.

    Args:
        tell: called with {"step", "steps", "cells": [[item, level, position, confidence or null]], "back": [[item, level, position]]}.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]):
        self._tell, self._before, self._first = tell, None, -1  # type: ignore[var-annotated]

    def __call__(self, step: Step) -> None:
        tokens = step.tokens
        if isinstance(tokens, Latents):
            codes = torch.where(tokens.values.isnan().any(1, keepdim=True), -2, 0).cpu()
        else:
            codes = tokens.codes.cpu()
        before = self._before if self._first == step.first and self._before is not None else torch.full_like(codes, -2)
        self._before, self._first = codes, step.first
        drawn = ((codes != before) & (codes >= 0)).nonzero()
        back = ((codes < 0) & (before >= 0)).nonzero()
        likely = [None] * len(drawn)
        if step.confidence is not None and step.confidence.shape == codes.shape:
            likely = [None if p != p else round(p, 4) for p in step.confidence[tuple(drawn.T)].tolist()]  # type: ignore[misc]
        cells = [[item + step.first, level, position, p] for (item, level, position), p in zip(drawn.tolist(), likely)]
        back = [[item + step.first, level, position] for item, level, position in back.tolist()]  # type: ignore[assignment]
        self._tell({"step": step.step, "steps": step.steps, "cells": cells, "back": back})
