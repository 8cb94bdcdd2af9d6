"""Which ids may follow which, as data: tokens of a mixed vocabulary whose parts alternate.

A `TokenSpec` with `parts` and a `grammar` is a finite automaton over the names of its parts:
grammar[state][part] is the state after an id of that part, or -1 where none of its ids is possible. A row
begins in state 0; a state without a successor is the end of a row. So which part a cell is of may depend on
what came before (a text that ends early leaves its place to speech), and yet is known before it is drawn.

A generator that follows a grammar gives every other id the logit -inf: its probabilities sum to one over
those that are possible.

Where the ids of a part are steps on a canvas (`TokenSpec.canvas`), a state also says which point the row has come to: it is the
automaton's state + states * point.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gentok.nn.constants import Constants
from gentok.types import TokenSpec

__all__ = ["Follower", "Grammar"]


class Grammar:
    """The automaton of a spec, as tensors.

    Args:
        spec: tokens with parts and a grammar.

    Raises:
        ValueError: they have no grammar.
    """

    def __init__(self, spec: TokenSpec):
        if not spec.grammar:
            raise ValueError(f"these tokens have no grammar: {spec.describe()}")
        with torch.device("cpu"):
            table = torch.tensor(spec.grammar)  # [states, parts]
            lost = len(table)  # where an impossible id leads; everything may follow, the row has probability 0 already
            follows = torch.where(table < 0, lost, table)
            stay = torch.arange(lost + 1)[:, None]
            follows = torch.cat((torch.cat((follows, torch.full((1, table.shape[1]), lost))), stay), 1)  # the last part: no id
            part = torch.full((spec.vocab + 2,), table.shape[1])
            for number, (_, start, stop) in enumerate(spec.parts):
                part[start:stop] = number
            able = torch.cat((table >= 0, (table < 0).all(1, keepdim=True)), 1)
            able = torch.cat((able, torch.ones(1, able.shape[1], dtype=torch.bool)))
            able = able[:, part[: spec.vocab + 1]]  # [states + 1, V + 1]: the last column is the end of a row
        self.vocab, self.size, self.canvas = spec.vocab, lost + 1, spec.canvas or 1
        self.first = spec.parts[-1][1] if spec.canvas else spec.vocab + 1  # the id of the step that stays; beyond all: there are none
        self._tables = Constants(follows=follows, part=part, able=able)

    def _parts(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> the number of their part; what is no id of the vocabulary (ABSENT, begin) is no
        part."""
        return self._tables.on(ids.device).part[torch.where((ids < 0) | (ids > self.vocab), self.vocab, ids)]

    def start(self, batch: int) -> Tensor:
        """int64 [batch]: the states before anything is fed."""
        return torch.zeros(batch, dtype=torch.int64)

    def step(self, state: Tensor, ids: Tensor) -> Tensor:
        """State and id, int64 [...] -> the state after it; ABSENT changes nothing."""
        after = self._tables.on(ids.device).follows[state % self.size, self._parts(ids)]
        x, y = self.point(state)
        dx, dy = self._steps(ids)
        return after + self.size * ((x + dx) % self.canvas + self.canvas * ((y + dy) % self.canvas))

    def _steps(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 [...] -> how far each moves, to the right and down; 0 where it is no step."""
        step = torch.where((ids >= self.first) & (ids < self.vocab), ids - self.first, 0)
        return step % self.canvas, step // self.canvas

    def point(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """State int64 [...] -> x and y of the point that the row has come to, 0 without a canvas."""
        point = state // self.size
        return point % self.canvas, point // self.canvas

    def states(self, ids: Tensor) -> Tensor:
        """ids int64 [B, N] -> int64 [B, N]: the state in which each cell is drawn. In log2 N rounds: maps of
        states are composed."""
        maps = self._tables.on(ids.device).follows.T[self._parts(ids[:, :-1])]  # [B, N - 1, states]
        reach = 1
        while reach < maps.shape[1]:
            maps = torch.cat((maps[:, :reach], self._compose(maps[:, :-reach], maps[:, reach:])), 1)
            reach *= 2
        states = torch.cat((ids.new_zeros(len(ids), min(1, ids.shape[1])), maps[..., 0]), 1)
        x, y = ((steps.cumsum(1) - steps) % self.canvas for steps in self._steps(ids))
        return states + self.size * (x + self.canvas * y)

    @staticmethod
    def _compose(first: Tensor, second: Tensor) -> Tensor:
        """Maps of states [B, n, states]: `second` after `first`."""
        return second.gather(2, first)

    def allowed(self, state: Tensor) -> Tensor:
        """State int64 [...] -> bool [..., V + 1]: the ids that may come next; the last one is the end of the
        row."""
        return self._tables.on(state.device).able[state % self.size]


class Follower:
    """Where the rows of a causal model's cache stand in a grammar, fed step by fed step, as `Causal.logits`
    and `commit` move them.

    Args:
        grammar: of the model's tokens.
        batch: B.
        capacity: of the cache.
        device: of the model.
    """

    def __init__(self, grammar: Grammar, batch: int, capacity: int, device: torch.device):
        self.grammar = grammar
        self._before = grammar.start(batch).to(device)[:, None].repeat(1, capacity + 1)  # the state before each fed step
        self._last: Tensor | None = None

    def read(self, ids: Tensor, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """Follows ids.

        Args:
            ids: int64 [B, S].
            at: int64 [B], the fed step of the first.
            parents: int64 [B, S], where they are a tree, as in `Causal.logits`.

        Returns:
            int64 [B, S]: the state after each.
        """
        rows, at = torch.arange(len(ids), device=ids.device), at.to(ids.device)
        first, after = self._before[rows, at], []
        for s in range(ids.shape[1]):
            if parents is None:
                state = after[-1] if s else first
            else:
                state = torch.stack([*after, first])[torch.where(parents[:, s] < 0, s, parents[:, s]), rows]
            after.append(self.grammar.step(state, ids[:, s]))
            if parents is None:
                self._before[rows, at + s + 1] = after[-1]
        self._last = torch.stack(after, 1)
        return self._last

    def take(self, rows: Tensor) -> Follower:
        """rows int64 [b] -> a follower of these rows."""
        out = copy.copy(self)
        out._before = self._before[rows]
        return out

    def put(self, rows: Tensor, other: Follower) -> None:
        """The rows int64 [b] become those of `other`."""
        self._before[rows] = other._before

    def commit(self, at: Tensor, path: Tensor) -> None:
        """Keeps steps of the last `read`, path int64 [B, P], -1 behind a row's end: they stand at at[b],
        at[b] + 1, ..."""
        row, place = (path >= 0).nonzero(as_tuple=True)
        self._before[row, at[row] + place + 1] = self._last[row, path[row, place]]
