"""A model in a thread of its own, that draws the items of all waiting requests together.

Requests are taken in the order of their arrival. The first one that waits says the kind of the next batch (sampler, settings, guidance);
every waiting request of that kind gives items to it, each an equal share first, so that a small request does not wait for all of a large
one. Requests of its kind that come later do not wait for its end, as long as there is room, no request of another kind was there before
them, and _TURNS times the size of a batch has not been taken: they join its rows between two steps (running.py), or share its network
calls (batches.py). Each is answered when its own items are done. A request's items depend on its own seed and on their numbers alone
(gentok/sampling_plan.py), whoever else is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from gentok.sampling_plan import Samples, SamplingPlan
from gentok.serving.batches import Batches
from gentok.serving.running import Running
from gentok.serving.watch import Watcher

__all__ = ["Busy", "Engine"]

_TURNS = 16


class Busy(Exception):
    """More is waiting than may."""


class _Job:
    """A request: its plan, how many of its n items were taken, and what was drawn of them by their numbers; or a function to be called."""

    def __init__(self, plan: SamplingPlan | None, work: Callable[[], Any] | None = None, watcher: Watcher | None = None):
        self.plan, self.work, self.watcher, self.future = plan, work, watcher, Future[Any]()
        self.items = 1 if plan is None else plan.parts[-1].stop
        self.kind = "" if plan is None else plan.kind
        self.taken, self.began = 0, 0.0
        self.pieces: dict[int, Any] = {}

    @property
    def left(self) -> int:
        return self.items - self.taken


class Engine:
    """Draws what is asked for.

    Args:
        batch_size: items drawn at once, at most.
        max_waiting: items that may wait, those that are being drawn not counted.

    Attributes:
        batches, items: how many batches, and items in them, were drawn so far.
    """

    def __init__(self, batch_size: int = 64, max_waiting: int = 256):
        self.batch_size, self.max_waiting = batch_size, max_waiting
        self.batches = self.items = 0
        self._jobs: list[_Job] = []
        self._change, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="gentok engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return sum(job.left for job in self._jobs)

    def sample(self, plan: SamplingPlan, watcher: Watcher | None = None) -> Future[Samples]:
        """Asks for the items of a plan.

        Args:
            plan: checked; all plans of an engine are of one bundle and one watermark.
            watcher: called in the engine's thread after every step of the plan's items; None: nobody watches.

        Returns:
            Future of Samples. Cancelling it takes back what was not yet begun.

        Raises:
            Busy: with it more than `max_waiting` items would wait.
        """
        return self._add(_Job(plan, watcher=watcher))

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Asks for a call in the model's thread, such as decoding, which counts as an item. Result and errors are those of `sample`."""
        return self._add(_Job(None, work))

    def close(self) -> None:
        """Takes no more; returns when all that waits is done."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    def _add(self, job: _Job) -> Future[Any]:
        with self._change:
            if self._closed:
                raise Busy("the server stops")
            if self._jobs and self.waiting + job.items > self.max_waiting:
                raise Busy(f"{self.waiting} items are waiting, of {self.max_waiting} that may")
            self._jobs.append(job)
            self._change.notify_all()
        return job.future

    def _run(self) -> None:
        while True:
            with self._change:
                self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                while not self._jobs and not self._closed:
                    self._change.wait()
                if not self._jobs:
                    return
                turn = self._turn(self.batch_size)
            self._do(turn)

    def _turn(self, room: int) -> list[tuple[_Job, int]]:
        """The next batch of up to `room` items: jobs, and how many items of each; these are taken. Jobs without further items wait no
        longer."""
        first = self._jobs[0]
        same = [job for job in self._jobs if job.kind == first.kind][:room] if first.plan else [first]
        same = [job for job in same if job.taken or job.future.set_running_or_notify_cancel()]
        turn: list[Any] = []
        for number, job in enumerate(same):  # those that want less than their share leave the rest to those behind them
            count = min(job.left, max(room // (len(same) - number), 1), room)
            turn.append([job, count])
            room -= count
        for entry in turn:  # and what is then still free goes to the first
            more = min(entry[0].left - entry[1], room)
            entry[1] += more
            room -= more
        for job, count in turn:
            job.taken += count
        self._jobs = [job for job in self._jobs if job.left and not job.future.cancelled()]
        return [(job, count) for job, count in turn if count]

    def _do(self, turn: list[tuple[_Job, int]]) -> None:
        """Draws, and hands out; an error goes to all whose items were among them."""
        try:
            if turn and turn[0][0].work is not None:
                turn[0][0].future.set_result(turn[0][0].work())
            elif turn:
                self._draw(turn)
        except BaseException as error:  # the thread goes on: other requests are no worse for it
            self._fail([job for job, _ in turn], error)

    def _fail(self, jobs: list[_Job], error: BaseException) -> None:
        for job in jobs:
            job.taken = job.items
            if not job.future.done():
                job.future.set_exception(error)
        with self._change:
            self._jobs = [job for job in self._jobs if job.left]

    def _draw(self, turn: list[tuple[_Job, int]]) -> None:
        """Draws a batch, and with it those of its kind that come later."""
        plan: Any = turn[0][0].plan
        kind, taken = turn[0][0].kind, sum(count for _, count in turn)

        def more(room: int) -> list[tuple[_Job, int]]:
            nonlocal taken
            while True:
                with self._change:
                    self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                    first = self._jobs[0] if self._jobs else None
                    closed = room <= 0 or taken >= _TURNS * self.batch_size
                    if first is None or (first.plan is not None and (closed or first.kind != kind)):
                        return []
                    some = self._turn(max(room, 1))
                if first.plan is not None:
                    taken += sum(count for _, count in some)
                    self.batches += not plan.open
                    return some
                self._do(some)  # a call, such as the plan of the next request

        def done(count: int) -> None:
            self.items += count

        self.batches += 1
        batch = Running(turn, more, done, self.batch_size) if plan.open else Batches(turn, more, done, self._fail, self.batch_size)
        try:
            batch.draw()
        except BaseException as error:
            self._fail(batch.jobs, error)
