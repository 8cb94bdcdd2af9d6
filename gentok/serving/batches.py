"""Batches of one kind, drawn side by side: requests that come while others are drawn begin a batch of their own at once, which shares
the network calls of those that are there (shared_calls.py), where the sampler's capability allows it (`SamplingPlan.shares`). Elsewhere
a batch is drawn to its end before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from gentok.samplers.request import SampleOutput
from gentok.sampling_plan import decoded, joined, split, tokens_together
from gentok.serving.running import Turn
from gentok.serving.shared_calls import SharedCalls
from gentok.serving.watch import Watch

__all__ = ["Batches"]


@dataclass
class _Batch:
    """A batch that is drawn: of whose items (job, number of the first, how many), and what it will be."""

    parts: list[tuple[Any, int, int]]
    made: Future[SampleOutput]

    @property
    def items(self) -> int:
        return sum(count for _, _, count in self.parts)


class Batches:
    """Such batches.

    Args:
        turn: who begins, all of the same kind.
        more: room -> who comes now; the batches end when nobody is there and nobody comes.
        done: called with how many items were drawn.
        fail: called with requests that cannot be drawn, and why.
        batch_size: items that are computed at once, at most.

    Attributes:
        jobs: all whose items are or were among them.
    """

    def __init__(
        self, turn: Turn, more: Callable[[int], Turn], done: Callable[[int], None], fail: Callable[[list[Any], BaseException], None],
        batch_size: int,
    ):  # fmt: skip
        self._turn, self._more, self._done, self._fail, self.batch_size = turn, more, done, fail, batch_size
        self._plan, self.jobs = turn[0][0].plan, []  # type: ignore[var-annotated]

    def draw(self) -> None:
        """Draws until nobody is left. Each request's future is set when its last item is done."""
        plan, turn, batches = self._plan, self._turn, list[_Batch]()
        with SharedCalls(plan.bundle.generator, plan.sampler.requires.rowwise) as calls:
            while turn or batches:
                if turn:
                    batches.append(self._begin(turn, calls))
                else:
                    calls.step()
                for batch in batches:
                    if batch.made.done():
                        self._end(batch)
                batches = [batch for batch in batches if not batch.made.done()]
                turn = self._more(self.batch_size - sum(batch.items for batch in batches))

    def _begin(self, turn: Turn, calls: SharedCalls) -> _Batch:
        parts = [(job, job.taken - count, count) for job, count in turn]
        self.jobs += [job for job, _ in turn if job not in self.jobs]
        some = [(job.plan, torch.arange(first, first + count)) for job, first, count in parts]
        options: dict[str, Any] = {}
        if any(job.watcher for job, _ in turn):
            seen = [(first, count, job.watcher) for job, first, count in parts]
            options = Watch(seen, self._plan.sampler, self._plan.mark, self._plan.bundle.spec).options
        for job, _ in turn:
            job.began = job.began or time.perf_counter()
        return _Batch(parts, calls.start(lambda model: tokens_together(some, options, model)))

    def _end(self, batch: _Batch) -> None:
        """Hands out; an error goes to all whose items were in the batch."""
        self._done(batch.items)
        try:
            whole = decoded(self._plan, batch.made.result(), 0.0)
            for (job, first, _), part in zip(batch.parts, split(whole, [count for _, _, count in batch.parts])):
                job.pieces[first] = part
                if sum(len(piece.calls) for piece in job.pieces.values()) == job.items and not job.future.done():
                    samples = joined([job.pieces[number] for number in sorted(job.pieces)])
                    job.future.set_result(replace(samples, seconds=time.perf_counter() - job.began))
        except BaseException as error:
            self._fail([job for job, _, _ in batch.parts], error)
