"""Any-subset speculative decoding (ASSD) for AnyOrder generators: several cells per pair of calls, and the distribution of one per call.

Guo and Ermon, arXiv 2504.20456, algorithm 1. A row of which `done` masked cells are drawn repeats

    draft    one call: x_j ~ q_j for the next k ranks at once, q_j = p(. | the cells of rank <= done)
    oracle   one call with the drafts in their places: p_j = p(. | the cells of rank < j)
    accept   x_j from left to right with probability min(1, p_j(x_j) / q_j(x_j)); at the first failure draw from the
             residual norm((p_j - q_j)+) and drop the later drafts; after k acceptances draw the next cell from its own p

The first draft has q = p and is always accepted, so a pair of calls yields at least two cells; the last masked cell of a
row is drawn from the draft's distribution without an oracle. Hence a row never takes more calls than it has masked
cells. All probabilities are filtered, guided and float64.

Deviations: batches, in which every row keeps its own place and leaves when it is full; the bonus cell, which the oracle
has paid for (the paper's code drafts again); where rounding leaves a failure without residual mass the cell is drawn from
p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.errors import check_at_least, check_choice
from gentok.generators.base import AnyOrder
from gentok.samplers.any_order import ORDERS, cell_of_rank, ranks_of
from gentok.samplers.base import Sampler
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.samplers.speculation import accepted, residual
from gentok.types import UNKNOWN, RowRNG

__all__ = ["AnySubset"]


@dataclass(frozen=True)
class AnySubset(Sampler, id="sampler/any_subset"):
    """Speculative decoding of any subset of cells.

    Args:
        k: cells drafted at once, >= 1 (1: one cell per call).
        order: left_to_right (the model's own) or random: a distribution that only a model trained in random orders has learnt.
    """

    requires = AnyOrder
    exact = True
    any_known = True

    k: int = 5
    order: str = "left_to_right"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, ORDERS)
        check_at_least(1, k=self.k)

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. stats: drafts and accepted, those after the first of a call, which is no guess."""
        run = _Run(self, request)
        guessed = stood = steps = 0
        while len(rows := (run.done < run.counts).nonzero()[:, 0]):
            q = run.distributions(rows, run.done[rows])[:, : self.k]
            guesses = request.choose(q.log(), request.rng.rows(rows))  # [b, k], also beyond a row's end: rows are independent
            run.write(rows, guesses)
            pair = ((run.counts - run.done)[rows] > 1) & (self.k > 1)
            run.done[rows[~pair]] += 1
            rows, q, guesses = rows[pair], q[pair], guesses[pair]
            if len(rows):
                kept, drafted = self._verify(run, rows, q, guesses)
                guessed, stood = guessed + int((drafted - 1).sum()), stood + int((kept - 1).sum())
            steps += 1
            request.report(run.drawn(), steps, int(run.counts.max()))
        return request.output(run.codes, run.calls, drafts=guessed, accepted=stood)

    def _verify(self, run: _Run, rows: Tensor, q: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """The oracle's call: accepts drafts from the left and draws one cell more. int64 [b]: drafts kept, and drafts that there were."""
        rng, left = run.request.rng.rows(rows), (run.counts - run.done)[rows]
        p = run.distributions(rows, None)
        kept, drafted = self._accept(p[:, : self.k], q, guesses, left, rng)
        failed = (kept < drafted)[:, None]
        rejected = kept.clamp(max=self.k - 1)[:, None, None].expand(-1, 1, p.shape[2])
        after = p.gather(1, kept[:, None, None].expand(-1, 1, p.shape[2]))[:, 0]
        logits = torch.where(failed, residual(p.gather(1, rejected), q.gather(1, rejected))[:, 0], after.log())
        last, more = run.request.choose(logits, rng), kept < left
        at = run.cells[rows, (run.done[rows] + kept).clamp(max=run.cells.shape[1] - 1)]
        run.codes[rows[more], at[more]] = last[more]
        run.done[rows] += kept + more
        return kept, drafted

    def _accept(self, p: Tensor, q: Tensor, guesses: Tensor, left: Tensor, rng: RowRNG) -> tuple[Tensor, Tensor]:
        """p, q float64 [b, k, V], guesses int64 [b, k], left int64 [b] masked cells -> int64 [b]: drafts accepted from the left, and drafted."""
        drafted = left.clamp(max=self.k)
        return accepted(p, q, guesses, torch.ones_like(left), drafted, rng), drafted  # the first: p = q but for rounding


class _Run:
    """A batch while it is drawn: codes int64 [B, K N]; cells int64 [B, K N] by rank; counts, done, calls int64 [B]: masked cells of each
    row, how many of them are drawn, and its network calls."""

    def __init__(self, sampler: AnySubset, request: SampleRequest):
        masked = request.tokens.masked
        self.sampler, self.request = sampler, request
        self.rank = ranks_of(request.model, masked, sampler.order, request.rng)
        self.cells, self.counts = cell_of_rank(self.rank), masked.sum((1, 2))
        self.codes = request.tokens.codes.flatten(1)
        self.done, self.calls = torch.zeros_like(self.counts), torch.zeros_like(self.counts)

    def distributions(self, rows: Tensor, seen: Tensor | None) -> Tensor:
        """The filtered distributions of the cells of rank done + 1 .. done + k + 1: float64 [b, k + 1, V]; any, where a row has no such rank."""
        part = self.request.rows(rows, self.codes)
        place = self.done[rows, None] + torch.arange(self.sampler.k + 1, device=rows.device)
        at = self.cells[rows].gather(1, place.clamp(max=self.cells.shape[1] - 1))
        logits = part.model.laws(part.tokens, part.condition, self.rank[rows], at, seen)
        part.network_calls.add(part.model, part.tokens.codes.numel())
        self.calls[rows] += 1
        logits = logits.masked_fill((place >= self.counts[rows, None])[..., None], 0.0)  # what stands there may be -inf everywhere
        return self.sampler.filter(logits).softmax(-1)

    def write(self, rows: Tensor, ids: Tensor) -> None:
        """The ids [b, k] into the cells of rank done + 1, ... of these rows, as far as there are such cells."""
        place = self.done[rows, None] + torch.arange(ids.shape[1], device=rows.device)
        b, j = (place < self.counts[rows, None]).nonzero().unbind(1)
        self.codes[rows[b], self.cells[rows[b], place[b, j]]] = ids[b, j]

    def drawn(self) -> Tensor:
        """The codes so far, UNKNOWN where a dropped draft stands."""
        place = torch.arange(self.cells.shape[1], device=self.codes.device)
        left = (place >= self.done[:, None]) & (place < self.counts[:, None])
        return self.codes.masked_fill(torch.zeros_like(left).scatter(1, self.cells, left), UNKNOWN)
