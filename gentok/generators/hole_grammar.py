"""A grammar in the order with holes at the end: which ids may stand in a hole, given what is kept on both sides.

A hole of given places must lead from the state before it to one in which what follows can be read, over further holes, up to the end of
the row. So an id is possible where its successor's state has a way through all cells that are left:

    way[p, q]     the cells from position p on can be read from state q: kept ones as they are, others with any id
    possible at p: ids whose state q' after q has way[p + 1, q']

Both are exact, as the states are few. The ids before a hole are all known when it is filled: kept ones, and those of earlier holes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.generators.hole_order import HolesLast
from gentok.grammar import Grammar
from gentok.nn.constants import Constants
from gentok.types import UNKNOWN, Tokens

__all__ = ["HoleGrammar"]


class HoleGrammar(Grammar):
    """The grammar of a spec, as `Follower` follows it in another order. A state is that of the automaton, with the row and the step.

    Args:
        tokens: B rows, codes int64 [B, 1, N], UNKNOWN in the cells that are to be drawn.
        holes: int64 [N], the number of the hole that each position lies in, -1 where it is kept.
        layout: of items with these holes.

    Raises:
        ValueError: the holes of a row cannot be filled.
    """

    def __init__(self, tokens: Tokens, holes: Tensor, layout: HolesLast):
        super().__init__(tokens.spec)
        codes, holes, steps = tokens.codes[:, 0].cpu(), holes.cpu(), layout.steps
        if not bool((self._parts(codes) != self._parts(codes[:1])).any() | ((codes == UNKNOWN) != (codes[:1] == UNKNOWN)).any()):
            codes = codes[:1]  # rows that have the same parts behave alike
        self.rows, self.steps, self.layout = len(codes), steps, layout
        follows = self._tables.on(codes.device).follows  # [Q, parts + 1], the last state is the lost one
        self.states_count = len(follows)
        way, enter = self._ways(codes, follows), self._entered(codes, holes, follows)
        first = [int((holes == h).nonzero()[0]) for h in range(int(holes.max()) + 1)]
        state = torch.zeros(len(codes), dtype=torch.int64)
        if first and not bool(way[:, first[0]].gather(1, enter[:, 0].gather(1, state[:, None])).all()):
            raise ValueError("no ids of the given number can stand in these holes, given what is kept: choose holes of whole commands")
        position, cells = layout.position[:, 0], torch.arange(self.states_count)
        inside = (position >= 0) & (holes[position.clamp(min=0)] >= 0)  # [S]
        move = cells.expand(len(codes), steps, -1).clone()  # by the step that was fed: sentinels lead into their hole
        for h in range(len(first)):
            sentinel = int((inside & (holes[position.clamp(min=0)] == h)).nonzero()[0]) - 1
            move[:, sentinel] = enter[:, h]
        drawn = inside[None] & (codes[:, position.clamp(min=0)] == UNKNOWN)
        possible = way[:, (position + 1).clamp(min=0)] | ~drawn[..., None]  # [rows, S, Q]
        free = ~drawn[..., None] | ~way[:, position.clamp(min=0)]  # what cannot be read any more has probability 0 already
        self._order = Constants(move=move, inside=inside, free=free, possible=possible)

    def _ways(self, codes: Tensor, follows: Tensor) -> Tensor:
        """bool [rows, N + 1, Q]."""
        lost = self.states_count - 1
        final = (follows[:, :-1] == lost).all(1)
        final[lost] = False
        way = torch.ones(len(codes), codes.shape[1] + 1, self.states_count, dtype=torch.bool)
        way[..., lost] = False
        for p in range(codes.shape[1] - 1, -1, -1):
            after = way[:, p + 1]
            any_id = after[:, follows[:, :-1]].any(2) | (final & after)
            kept = after.gather(1, follows[:, self._parts(codes[:, p])].T)
            absent = final & after
            here = codes[:, p, None]
            way[:, p] = torch.where(here == UNKNOWN, any_id, torch.where(here < 0, absent, kept))
            way[:, p, lost] = False
        return way

    def _entered(self, codes: Tensor, holes: Tensor, follows: Tensor) -> Tensor:
        """int64 [rows, holes, Q]: the state before each hole, from that behind the hole before it; before the first, from state 0."""
        out, at = [], torch.arange(self.states_count).expand(len(codes), -1)
        for p in range(len(holes)):
            if holes[p] < 0:
                at = follows[at, self._parts(codes[:, p])[:, None]]
            elif p == 0 or holes[p - 1] != holes[p]:
                out.append(at)
                at = torch.arange(self.states_count).expand(len(codes), -1)
        return torch.stack(out, 1) if out else torch.zeros(len(codes), 0, self.states_count, dtype=torch.int64)

    def start(self, batch: int) -> Tensor:
        """int64 [batch]: the states before anything is fed. Raises ValueError where rows differ and these are others."""
        if self.rows not in (1, batch):
            raise ValueError(f"these are the holes of {self.rows} rows that keep other parts, and {batch} rows are drawn: draw all at once")
        return torch.arange(self.rows).expand(batch) * (self.steps + 2) * self.states_count

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(row, how many steps were fed, automaton's state) of each."""
        rest, q = state // self.states_count, state % self.states_count
        return rest // (self.steps + 2), rest % (self.steps + 2), q

    def states(self, ids: Tensor) -> Tensor:
        """ids int64 [B, N] -> int64 [B, S]: the state in which each step of the layout is drawn."""
        fed, out = self.layout.flatten(ids[:, None])[..., 0], []
        state = self.step(self.start(len(ids)).to(ids.device), fed[:, 0])
        for ids_of_step in fed.T:
            out.append(state)
            state = self.step(state, ids_of_step)
        return torch.stack(out, 1)

    def step(self, state: Tensor, ids: Tensor) -> Tensor:
        """As Grammar.step; what is fed first is `begin`, then the steps of the layout."""
        tables = self._order.on(ids.device)
        row, fed, q = self._split(state)
        s = (fed - 1).clamp(0, self.steps - 1)
        after = torch.where(tables.inside[s], super().step(q, ids), tables.move[row, s, q])
        after = torch.where(fed == 0, q, after)
        return (row * (self.steps + 2) + (fed + 1).clamp(max=self.steps + 1)) * self.states_count + after

    def allowed(self, state: Tensor) -> Tensor:
        """As Grammar.allowed; all ids where nothing is drawn."""
        tables, base = self._order.on(state.device), self._tables.on(state.device)
        row, fed, q = self._split(state)
        s = (fed - 1).clamp(0, self.steps - 1)
        parts = tables.possible[row, s].gather(-1, base.follows[q])  # [..., parts + 1]: of the state that an id of each part leads to
        fits = parts[..., base.part[: self.vocab]]
        ended = tables.possible[row, s].gather(-1, q[..., None])
        return (super().allowed(q) & torch.cat((fits, ended), -1)) | tables.free[row, s].gather(-1, q[..., None])
