"""Which rows of a causal batch are computed, and at which steps: planned on the host, before the network runs.

A row draws its unknown steps in order; each of its calls feeds what lies between its last draw and the next one. Rows that wait join when
others are done ("continuous batching", Yu et al., Orca, OSDI 2022), and what rows begin with is computed once where their condition and
their known cells are the same: the first call of joining rows is made apart, on rows that differ, and its cache is then copied row by row.
Nothing here depends on what is drawn, but for the ends of items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Causal
from gentok.samplers.request import NetworkCalls
from gentok.types import Condition

__all__ = ["Draws", "RowQueue", "Turn"]


class Draws:
    """The steps that each row draws, in order, on the CPU.

    Args:
        masked: bool [n, S, G], the cells that are to be drawn.

    Attributes:
        counts: n numbers, the calls that each row needs.
        done: n numbers, the steps that each row has fed.
        calls: n numbers, the calls that each row had.
    """

    def __init__(self, masked: Tensor):
        self._whole = masked.new_zeros(0, masked.shape[1], device="cpu")
        self._steps: list[list[int]] = []
        self.done: list[int] = []
        self.calls: list[int] = []
        self.add(masked)

    def add(self, masked: Tensor) -> None:
        """Further rows, behind the others; masked as of the class."""
        masked = masked.cpu()
        self._whole = torch.cat((self._whole, masked.all(2)))
        self._everywhere: list[bool] = self._whole.all(0).tolist()
        self._steps += [row.nonzero()[:, 0].tolist() for row in masked.any(2)]
        self.done += [0] * len(masked)
        self.calls += [0] * len(masked)

    @property
    def counts(self) -> list[int]:
        return [len(steps) for steps in self._steps]

    @property
    def capacity(self) -> int:
        """Fed steps that a row needs at most."""
        return max((steps[-1] + 1 for steps in self._steps if steps), default=0)

    def waiting(self, row: int) -> bool:
        """Whether a row has something to draw."""
        return self.calls[row] < len(self._steps[row])

    def next(self, row: int) -> tuple[int, int]:
        """The first step that a row feeds in its next call, and the one that it draws there; of a row that is done its last call."""
        steps, call = self._steps[row], self.calls[row]
        if call < len(steps):
            return self.done[row], steps[call]
        return (steps[-1], steps[-1]) if steps else (0, 0)

    def whole(self, rows: list[int], step: int) -> bool:
        """Whether all slots of a step are drawn, in all of these rows."""
        return self._everywhere[step] or bool(self._whole[rows, step].all())

    def drawn(self, row: int, step: int) -> None:
        """A row has drawn a step."""
        self.calls[row] += 1
        self.done[row] = step + 1

    def forget(self, row: int, masked: Tensor) -> None:
        """A row ended; masked bool [S, G]: the cells behind its last draw that are still to be drawn."""
        masked, done = masked.cpu(), self.done[row]
        self._steps[row] = self._steps[row][: self.calls[row]] + [s for s in masked.any(1).nonzero()[:, 0].tolist() if s >= done]
        self._whole[row] = masked.all(1)
        self._everywhere = self._whole.all(0).tolist()


@dataclass
class Turn:
    """One call.

    Attributes:
        logits: float [b, G, V] of these rows' steps.
        rows: b numbers.
        steps: b numbers, the step that each draws.
        step: the same, where all draw it.
    """

    logits: Tensor
    rows: list[int]
    steps: list[int]
    step: int | None


class RowQueue:
    """Rows in a cache, those that wait, and their calls.

    Args:
        model: the generator.
        condition: of n rows.
        draws: of these rows.
        at_once: rows that are computed together at most; None: all.
        whole_layout: whether a row may need every step.
        grows: whether rows may be added.
        network_calls: where calls are counted.
    """

    def __init__(
        self, model: Causal, condition: Condition, draws: Draws, at_once: int | None, whole_layout: bool, network_calls: NetworkCalls,
        grows: bool = False,
    ):  # fmt: skip
        self.model, self.condition, self.draws, self.network_calls = model, condition, draws, network_calls
        n = len(draws.done)
        self.moves = model.moves_rows
        self.waiting = [row for row in range(n) if draws.waiting(row)] if self.moves else list(range(n))
        self.size = at_once if grows and at_once else max(min(at_once or n, n), 1) if self.moves else n
        self.capacity = model.layout.steps if whole_layout or grows else draws.capacity
        self.keys = condition.keys(n) if self.moves else []
        self.rows: list[int] = []  # of the cache, in its order
        self.cache: Any = None

    def __bool__(self) -> bool:
        """Whether a row is to be drawn."""
        return any(map(self.draws.waiting, self.rows)) or any(map(self.draws.waiting, self.waiting))

    @property
    def room(self) -> int:
        """How many more rows could be computed at once."""
        return self.size - len(self._busy()) - len(self.waiting)

    def add(self, condition: Condition, n: int) -> None:
        """Further rows, which `draws` has already; condition: of n rows."""
        first = len(self.draws.done) - n
        self.condition = Condition.concat([self.condition, condition])
        self.keys += condition.keys(n)
        self.waiting += [row for row in range(first, first + n) if self.draws.waiting(row)]

    def turn(self, fed: Tensor) -> Turn:
        """The next call.

        Args:
            fed: int64 [n, S, G], what each row feeds: codes, ABSENT where nothing is known yet.
        """
        if self.waiting and len(self._busy()) < self.size:
            return self._join(fed)
        busy = self._busy()
        if self.moves and 4 * len(busy) <= 3 * len(self.rows):  # each copy is paid for by the rows that are left out from now on
            self.cache = self.model.take(self.cache, self._tensor([i for i, row in enumerate(self.rows) if self.draws.waiting(row)], fed))
            self.rows = busy
        return self._call(fed)

    def _busy(self) -> list[int]:
        return [row for row in self.rows if self.draws.waiting(row)]

    @staticmethod
    def _tensor(numbers: list[int], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(like.device, non_blocking=True)

    def _call(self, fed: Tensor) -> Turn:
        """A call on all rows of the cache."""
        rows = self.rows
        first, last = zip(*map(self.draws.next, rows))
        width = max(b - a for a, b in zip(first, last)) + 1
        first = [min(a, self.capacity - width) for a in first]  # near the end a row with less to feed than others feeds steps once more
        at, same = torch.tensor(first), min(first) == max(first)
        index = slice(None) if rows == list(range(len(fed))) else self._tensor(rows, fed)
        if same:
            ids = fed[index, first[0] : first[0] + width]
        else:
            ids = fed[self._tensor(rows, fed)[:, None], at.to(fed.device)[:, None] + torch.arange(width, device=fed.device)]
        logits = self.model.logits(ids, self.cache, at)
        self.model.commit(self.cache, at)
        self.network_calls.add(self.model, len(rows) * width)
        return self._turn(logits, rows, list(first), list(last))

    def _turn(self, logits: Tensor, rows: list[int], first: list[int], last: list[int]) -> Turn:
        """Of the rows that still draw."""
        busy = [i for i, row in enumerate(rows) if self.draws.waiting(row)]
        steps = [last[i] for i in busy]
        offset = [last[i] - first[i] for i in busy]
        step = steps[0] if min(steps) == max(steps) else None
        if min(offset) == max(offset):
            logits = logits[:, offset[0]]
            logits = logits if len(busy) == len(rows) else logits[self._tensor(busy, logits)]
        else:
            logits = logits[self._tensor(busy, logits), self._tensor(offset, logits)]
        return Turn(logits, [rows[i] for i in busy], steps, step)

    def _join(self, fed: Tensor) -> Turn:
        """The first call of as many waiting rows as there is room for, made once for rows that begin alike."""
        if not self.moves:
            self.rows, self.waiting = self.waiting, []
            self.cache = self.model.init_cache(self.condition, len(self.rows), self.capacity)
            return self._call(fed)
        free = [i for i, row in enumerate(self.rows) if not self.draws.waiting(row)]
        room = self.size - len(self.rows) + len(free)
        joining, self.waiting = self.waiting[:room], self.waiting[room:]
        kinds: dict[Any, int] = {}
        which, kept = [], []
        for row in joining:
            last = self.draws.next(row)[1]
            begins = fed[row, : last + 1].cpu().numpy().tobytes() if last else b""
            number = kinds.setdefault((self.keys[row], last, begins), len(kinds))
            which.append(number)
            if number == len(kept):
                kept.append(row)
        cache = self.model.init_cache(self.condition.rows(self._tensor(kept, fed)), len(kept), self.capacity)
        first, last = zip(*map(self.draws.next, kept))
        width = max(last) + 1
        logits = self.model.logits(fed[self._tensor(kept, fed), :width], cache, torch.zeros(len(kept), dtype=torch.int64))
        self.model.commit(cache, torch.zeros(len(kept), dtype=torch.int64))
        self.network_calls.add(self.model, len(kept) * width)
        if len(kept) < len(joining):
            copies = self._tensor(which, fed)
            cache, logits = self.model.take(cache, copies), logits[copies]
        self._place(cache, joining, free, fed)
        return self._turn(logits, joining, [0] * len(joining), [self.draws.next(row)[1] for row in joining])

    def _place(self, cache: Any, joining: list[int], free: list[int], like: Tensor) -> None:
        """Puts the rows of a cache where others are done."""
        if self.cache is None:
            self.cache, self.rows = cache, joining
            return
        if (more := len(joining) - len(free)) > 0:  # places that the batch did not have before: copies, which are then written over
            self.cache = self.model.take(self.cache, self._tensor([*range(len(self.rows)), *[0] * more], like))
            free, self.rows = [*free, *range(len(self.rows), len(self.rows) + more)], [*self.rows, *joining[:more]]
        self.model.put(self.cache, self._tensor(free[: len(joining)], like), cache)
        for i, row in zip(free, joining):
            self.rows[i] = row
