"""Any-subset speculative decoding (ASSD) for AnyOrder generators: several cells per pair of calls, and the
distribution of one per call.

Guo and Ermon, arXiv 2504.20456, algorithm 1. A row of which `done` masked cells are drawn repeats

    draft    one call: x_j ~ q_j for the next k ranks at once, q_j = p(. | the cells of rank <= done)
    oracle   one call with the drafts in their places: p_j = p(. | the cells of rank < j)
    accept   x_j from left to right with probability min(1, p_j(x_j) / q_j(x_j)); at the first failure draw
             from the residual norm((p_j - q_j)+) and drop the later drafts; after k acceptances draw the
             next cell from its own p

The first draft has q = p and is always accepted, so a pair of calls yields at least two cells; the last
masked cell of a row is drawn from the draft's distribution without an oracle. Hence a row never takes more
calls than it has masked cells. All probabilities are filtered, guided and float64.

Deviations: batches, in which every row keeps its own place and leaves when it is full; the bonus cell, which
the oracle has paid for (the paper's code drafts again); where rounding leaves a failure without residual mass
the cell is drawn from p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import AnyOrder
from gentok.samplers.any_order import ORDERS, OrderedState, ordered_state
from gentok.samplers.base import Sampler, setting
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.samplers.speculation import accepted, residual
from gentok.settings import PositiveInt
from gentok.types import UNKNOWN, RowRNG

__all__ = ["AnySubset"]


@dataclass(frozen=True)
class AnySubset(Sampler, id="sampler/any_subset"):
    """Speculative decoding of any subset of cells.

    Args:
        k: cells drafted at once, >= 1 (1: one cell per call).
        order: left_to_right (the model's own) or random: a distribution that only a model trained in random
            orders has learnt.
    """

    requires = AnyOrder
    exact = True
    any_known = True

    k: PositiveInt = 5
    order: str = setting("left_to_right", choices=ORDERS)

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. stats: drafts and accepted, those after the first of a call, which is no guess."""
        state = ordered_state(request, self.order, self.filter)
        guessed = stood = steps = 0
        while len(rows := state.unfinished()):
            q = state.logits(rows, self.k + 1, state.done[rows])[:, : self.k].softmax(-1)
            guesses = request.choose(q.log(), request.rng.rows(rows))  # [b, k], also beyond a row's end: rows are independent
            state.write(rows, guesses)
            pair = ((state.counts - state.done)[rows] > 1) & (self.k > 1)
            state.done[rows[~pair]] += 1
            rows, q, guesses = rows[pair], q[pair], guesses[pair]
            if len(rows):
                kept, drafted = self._verify(state, rows, q, guesses)
                guessed, stood = guessed + int((drafted - 1).sum()), stood + int((kept - 1).sum())
            steps += 1
            request.report(self._drawn(state), steps, int(state.counts.max()))
        return request.output(state.codes, state.calls, drafts=guessed, accepted=stood)

    def _verify(self, state: OrderedState, rows: Tensor, q: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """The oracle's call: accepts drafts from the left and draws one cell more. int64 [b]: drafts kept,
        and drafts that there were."""
        rng, left = state.request.rng.rows(rows), (state.counts - state.done)[rows]
        p = state.logits(rows, self.k + 1).softmax(-1)
        kept, drafted = self._accept(p[:, : self.k], q, guesses, left, rng)
        rejected = kept.clamp(max=self.k - 1)[:, None, None].expand(-1, 1, p.shape[2])
        after = p.gather(1, kept[:, None, None].expand(-1, 1, p.shape[2]))[:, 0]
        logits = residual(p.gather(1, rejected), q.gather(1, rejected))[:, 0]
        last = state.request.choose(torch.where((kept < drafted)[:, None], logits, after.log()), rng)
        state.done[rows] += kept
        state.write(rows, last[:, None])
        state.done[rows] += kept < left
        return kept, drafted

    def _accept(self, p: Tensor, q: Tensor, guesses: Tensor, left: Tensor, rng: RowRNG) -> tuple[Tensor, Tensor]:
        """p, q float64 [b, k, V], guesses int64 [b, k], left int64 [b] masked cells -> int64 [b]: drafts
        accepted from the left, and drafted."""
        drafted = left.clamp(max=self.k)
        return accepted(p, q, guesses, torch.ones_like(left), drafted, rng), drafted  # the first: p = q but for rounding

    @staticmethod
    def _drawn(state: OrderedState) -> Tensor:
        """The codes so far, UNKNOWN where a dropped draft stands."""
        place = torch.arange(state.cells.shape[1], device=state.codes.device)
        left = (place >= state.done[:, None]) & (place < state.counts[:, None])
        return state.codes.masked_fill(torch.zeros_like(left).scatter(1, state.cells, left), UNKNOWN)
