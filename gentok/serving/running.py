"""A batch that others join while it is drawn ("continuous batching", Yu et al., Orca, OSDI 2022), and that each request leaves when its
items are done. Only of samplers and models whose rows can join (`SamplingPlan.open`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gentok.samplers.request import Arrivals, Joining, SampleOutput
from gentok.sampling_plan import decoded, sample_tokens
from gentok.serving.watch import Watch
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["Running"]

Turn = list[tuple[Any, int]]
"""Requests (gentok.serving.engine), and how many of their items were taken last."""


class Running(Arrivals):
    """One such batch.

    Args:
        turn: who is there from the beginning, all of the same kind.
        more: room -> who joins now.
        done: called with how many items left the batch.
        batch_size: items that are computed at once, at most.

    Attributes:
        jobs: all whose items are or were in it.
    """

    def __init__(self, turn: Turn, more: Callable[[int], Turn], done: Callable[[int], None], batch_size: int):
        self._more, self._done, self.batch_size = more, done, batch_size
        self._plan, self._rows, self.jobs = turn[0][0].plan, [], []  # type: ignore[var-annotated]
        parts = [(job.taken - count, count, self._watcher(job)) for job, count in turn]
        # who comes later to a batch that nobody watched is told of its steps without probabilities, which cost a look at every draw
        self._watch = Watch(parts, self._plan.sampler, None, self._plan.bundle.spec, any(job.watcher for job, _ in turn))
        self._first = self._rows_of(turn)

    def draw(self) -> None:
        """Draws until nobody is left. Each request's future is set when its last item is done."""
        start, plan = self._first, self._plan
        sample_tokens(
            plan.bundle.generator, start.condition, plan.sampler, rng=start.rng, lengths=start.lengths, guidance=plan.guidance,
            schedule=plan.schedule, at_once=self.batch_size, arrivals=self, **self._watch.options,
        )  # fmt: skip

    def join(self, room: int) -> Joining | None:
        turn = self._more(room)
        if not turn:
            return None
        for job, count in turn:
            self._watch.add(job.taken - count, count, self._watcher(job))
        return self._rows_of(turn)

    def leave(self, rows: list[int], tokens: Tokens, calls: list[int], rng: RowRNG) -> None:
        self._done(len(rows))
        for i, row in enumerate(rows):
            job, item = self._rows[row]
            job.pieces[item] = tokens.rows([i]), calls[i]
            if len(job.pieces) == job.items and not job.future.done():
                try:
                    job.future.set_result(self._samples(job))
                except BaseException as error:  # of its decoding: others go on
                    job.future.set_exception(error)

    @staticmethod
    def _samples(job: Any) -> Any:
        """All items of a request, in their order."""
        tokens, calls = zip(*(job.pieces[item] for item in range(job.items)))
        lengths = None if tokens[0].lengths is None else torch.cat([one.lengths for one in tokens])
        whole = Tokens(torch.cat([one.codes for one in tokens]), tokens[0].spec, lengths)
        return decoded(job.plan, SampleOutput(whole, torch.tensor(calls), {}), time.perf_counter() - job.began)

    @staticmethod
    def _watcher(job: Any) -> Any:
        """The watcher of a request, until its items are done."""
        return job.watcher and (lambda step: None if job.future.done() else job.watcher(step))

    def _rows_of(self, turn: Turn) -> Joining:
        parts = []
        for job, count in turn:
            job.began = job.began or time.perf_counter()
            items = range(job.taken - count, job.taken)
            self._rows += [(job, item) for item in items]
            self.jobs += [job] if job not in self.jobs else []
            parts.append(job.plan.rows(torch.tensor(items)))
        lengths = None if parts[0].lengths is None else torch.cat([part.lengths for part in parts])
        return Joining(Condition.concat([part.condition for part in parts]), RowRNG.concat([part.rng for part in parts]), lengths)
