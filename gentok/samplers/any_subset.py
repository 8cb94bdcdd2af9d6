"""Any-subset speculative decoding (ASSD) for AnyOrder generators: several cells per pair of calls, and the law of one cell per call.

Guo and Ermon, arXiv 2504.20456, algorithm 1. A row of which `done` holes are drawn repeats

    draft    one call: x_j ~ q_j for the next k ranks at once, q_j = p(. | the cells of rank <= done)
    oracle   one call with the drafts in their places: p_j = p(. | the cells of rank < j)
    accept   x_j from left to right with probability min(1, p_j(x_j) / q_j(x_j)); at the first failure draw from the residual
             norm((p_j - q_j)+) and drop the later drafts; after k acceptances draw the next cell from its own p

The first draft has q = p and is always accepted, so a pair of calls yields at least two cells; the last hole of a row is drawn from the
draft's law without an oracle. Hence a row never takes more calls than it has holes. All probabilities are filtered, guided and float64.

Deviations: batches, in which every row keeps its own place and leaves when it is full; the bonus cell, which the oracle has paid for (the
paper's code drafts again); where rounding leaves a failure without residual mass the cell is drawn from p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import AnyOrder
from gentok.samplers.any_order import cell_of_rank, check_order, ranks_of
from gentok.samplers.base import CellSampler, Choice, NetworkCalls, OnStep, SampleOutput
from gentok.samplers.speculation import accepted, residual
from gentok.types import UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["AnySubset"]


@dataclass(frozen=True)
class AnySubset(CellSampler, id="sampler/any_subset"):
    """k: cells drafted at once (1: one cell per call). order: left_to_right (the model's own) or random: a law that only a model trained in
    random orders has learnt."""

    requires = AnyOrder
    exact = True
    any_known = True

    k: int = 5
    order: str = "left_to_right"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order)
        if self.k < 1:
            raise ValueError(f"k, the number of drafts, must be >= 1; got {self.k}")

    def run(
        self, model: AnyOrder, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None
    ) -> SampleOutput:
        """As Sampler. stats: drafts and accepted, those after the first of a call, which is no guess."""
        rank = ranks_of(model, tokens.masked, self.order, rng)
        cells, counts = cell_of_rank(rank), tokens.masked.sum((1, 2))
        codes, done, used = tokens.codes.flatten(1), torch.zeros_like(counts), torch.zeros_like(counts)
        calls, guessed, stood, steps = NetworkCalls(), 0, 0, 0

        def laws(rows: Tensor, filled: Tensor, seen: Tensor | None) -> Tensor:
            """The filtered laws of the cells of rank done + 1 .. done + k + 1: float64 [b, k + 1, V]; ranks that a row has not: any."""
            now = Tokens(filled.view(-1, *tokens.codes.shape[1:]), tokens.spec, tokens.rows(rows).lengths)
            own = self._ahead(done[rows], counts[rows])
            at = cells[rows].gather(1, own.clamp(max=cells.shape[1] - 1))
            law = model.conditionals(now, condition.rows(rows), rank[rows], at, seen)
            calls.add(model, now.codes.numel())
            used[rows] += 1
            law = law.masked_fill((own >= counts[rows, None])[..., None], 0.0)  # what stands there may be -inf everywhere
            return self.filter(law).softmax(-1)

        while bool((done < counts).any()):
            rows = (done < counts).nonzero()[:, 0]
            q = laws(rows, codes[rows], done[rows])[:, : self.k]
            guesses = choose(q.log(), rng.rows(rows))  # [b, k], also beyond a row's end: what a row draws is its own affair
            self._write(codes, rows, guesses, cells, done, (counts - done)[rows].clamp(max=self.k))
            pair = ((counts - done)[rows] > 1) & (self.k > 1)
            alone = rows[~pair]
            done[alone] += 1
            rows, q, guesses = rows[pair], q[pair], guesses[pair]
            if len(rows):
                own_noise = rng.rows(rows)
                p = laws(rows, codes[rows], None)
                kept, drafted = self._accept(p[:, : self.k], q, guesses, counts[rows] - done[rows], own_noise)
                place = kept.clamp(max=self.k - 1)[:, None, None].expand(-1, 1, p.shape[2])
                failed = kept < drafted
                after = p.gather(1, kept[:, None, None].expand(-1, 1, p.shape[2]))[:, 0]
                law = torch.where(failed[:, None], residual(p[:, : self.k].gather(1, place), q.gather(1, place))[:, 0], after.log())
                last = choose(law, own_noise)
                more = done[rows] + kept < counts[rows]
                at = cells[rows, (done[rows] + kept).clamp(max=cells.shape[1] - 1)]
                codes[rows[more], at[more]] = last[more]
                done[rows] += kept + more
                guessed, stood = guessed + int(drafted.sum()) - len(rows), stood + int(kept.sum()) - len(rows)
            steps += 1
            if on_step is not None:
                on_step(self._drawn(codes, cells, done, counts, tokens), steps, int(counts.max()))
        out = Tokens(codes.view_as(tokens.codes), tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, used, dict(calls), stats={"drafts": guessed, "accepted": stood})

    def _ahead(self, done: Tensor, counts: Tensor) -> Tensor:
        """int64 [b, k + 1]: done, done + 1, ..., done + k: the ranks, less one, of a call's drafts and of the cell after them."""
        return done[:, None] + torch.arange(self.k + 1, device=done.device)

    def _write(self, codes: Tensor, rows: Tensor, ids: Tensor, cells: Tensor, done: Tensor, number: Tensor) -> None:
        """The first number[b] of ids [b, k] into the cells of rank done + 1, ... of these rows."""
        for j in range(ids.shape[1]):
            has = number > j
            codes[rows[has], cells[rows[has], done[rows[has]] + j]] = ids[has, j]

    def _accept(self, p: Tensor, q: Tensor, guesses: Tensor, left: Tensor, rng: RowRNG) -> tuple[Tensor, Tensor]:
        """p, q float64 [b, k, V], guesses int64 [b, k], left int64 [b] holes -> int64 [b]: drafts accepted from the left, and drafted."""
        drafted = left.clamp(max=self.k)
        return accepted(p, q, guesses, torch.ones_like(left), drafted, rng), drafted  # the first: the same law, but for rounding

    @staticmethod
    def _drawn(codes: Tensor, cells: Tensor, done: Tensor, counts: Tensor, tokens: Tokens) -> Tokens:
        """The tokens so far, with holes where a dropped draft stands."""
        place = torch.arange(cells.shape[1], device=codes.device)
        open_ = (place >= done[:, None]) & (place < counts[:, None])
        masked_cells = torch.zeros_like(open_).scatter(1, cells, open_)
        return Tokens(torch.where(masked_cells, torch.full_like(codes, UNKNOWN), codes).view_as(tokens.codes), tokens.spec, tokens.lengths)
