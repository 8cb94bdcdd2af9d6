"""Several batches that are drawn side by side, whose network calls are made as one.

Each batch is drawn by its sampler as if it were alone, in a thread of its own that stops at every call of the network. When all have
stopped, the calls of the same method and the same settings as the one that has waited longest are joined along their rows and made once,
and every batch gets its rows of the answer. So the batches need not stand at the same step, and no sampler knows of it. Only one thread
works at a time, so what happens does not depend on the machine's speed.

Which methods may be joined is said by the capability (`Capability.rowwise`); all others are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import copy
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from gentok.types import Condition, Tokens

__all__ = ["SharedCalls"]


class _Call:
    """A call that waits. kind: equal for calls that can be joined; rows: of its arguments."""

    def __init__(self, name: str, given: dict[Any, Any]):
        self.name, self.given, self.answer = name, given, Future[Any]()
        parts = [part for part in given.values() if isinstance(part, (Tensor, Tokens))]
        self.rows = len(parts[0]) if isinstance(parts[0], Tensor) else parts[0].batch
        self.kind = name, repr([(key, _shape(part)) for key, part in given.items()])


class SharedCalls:
    """Batches of one generator, side by side. A context manager: calls that still wait at its end are cancelled.

    Args:
        model: the generator.
        methods: names of those of its methods that may be joined.
    """

    def __init__(self, model: Any, methods: Sequence[str]):
        self._model, self._methods = model, methods
        self._told = SimpleQueue[_Call | None]()  # by the batch that works: its next call; None: it is done
        self._calls: list[_Call] = []  # in the order in which they came

    def __enter__(self) -> SharedCalls:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for call in self._calls:
            call.answer.set_exception(error or RuntimeError("the batch was given up"))

    def start(self, draw: Callable[[Any], Any]) -> Future[Any]:
        """Begins a batch and draws it up to its first call.

        Args:
            draw: a generator, which is to be used for all calls -> what is drawn.

        Returns:
            Future of what is drawn.
        """
        made = Future[Any]()

        def work() -> None:
            try:
                made.set_result(draw(self._twin()))
            except BaseException as error:
                made.set_exception(error)
            self._told.put(None)

        Thread(target=work, name="gentok batch", daemon=True).start()
        self._listen()
        return made

    def step(self) -> None:
        """Makes the call that has waited longest, with all of its kind, and draws each of their batches up to its next one."""
        if not self._calls:
            return
        kind = self._calls[0].kind
        calls, self._calls = [call for call in self._calls if call.kind == kind], [call for call in self._calls if call.kind != kind]
        try:
            answers, error = self._make(calls), None
        except Exception as failed:  # of these batches alone
            answers, error = [None] * len(calls), failed
        for call, answer in zip(calls, answers, strict=True):
            call.answer.set_result(answer) if error is None else call.answer.set_exception(error)
            self._listen()

    def _listen(self) -> None:
        """Waits until the batch that works calls the network or is done."""
        if (call := self._told.get()) is not None:
            self._calls.append(call)

    def _twin(self) -> Any:
        """The generator, with the same weights, whose calls wait for others."""
        twin = copy(self._model)
        for name in self._methods:
            vars(twin)[name] = partial(self._wait, name)
        return twin

    def _wait(self, name: str, *args: Any, **named: Any) -> Any:
        call = _Call(name, {**dict(enumerate(args)), **named})
        self._told.put(call)
        return call.answer.result()

    @torch.no_grad()
    def _make(self, calls: Sequence[_Call]) -> list[Any]:
        """The answers of calls of one kind, made as one."""
        given = {key: _joined([call.given[key] for call in calls]) for key in calls[0].given}
        answer = getattr(self._model, calls[0].name)(*[part for key, part in given.items() if isinstance(key, int)],
                                                     **{key: part for key, part in given.items() if isinstance(key, str)})  # fmt: skip
        answers, first = [], 0
        for call in calls:
            answers.append(_rows(answer, slice(first, first + call.rows)) if len(calls) > 1 else answer)
            first += call.rows
        return answers


def _has_rows(part: Any) -> bool:
    return isinstance(part, (Tensor, Tokens, Condition))


def _shape(part: Any) -> Any:
    """What must be the same in calls that are joined: of an argument with rows all but these, else its value."""
    if isinstance(part, Tokens):
        return part.codes.shape[1:], part.lengths is None
    return part.shape[1:] if isinstance(part, Tensor) else type(part) if _has_rows(part) else part


def _joined(parts: Sequence[Any]) -> Any:
    """An argument of several calls as one; what has no rows is the same in all."""
    first = parts[0]
    if len(parts) == 1 or not _has_rows(first):
        return first
    if isinstance(first, Tokens):
        lengths = None if first.lengths is None else torch.cat([part.lengths for part in parts])
        return Tokens(torch.cat([part.codes for part in parts]), first.spec, lengths)
    return torch.cat(tuple(parts)) if isinstance(first, Tensor) else Condition.concat(parts)


def _rows(answer: Any, rows: slice) -> Any:
    """Some rows of what a method gives: a tensor, something that has `rows`, or a tuple of these."""
    if isinstance(answer, tuple):
        return tuple(_rows(part, rows) for part in answer)
    return answer[rows] if isinstance(answer, Tensor) else answer.rows(rows)
