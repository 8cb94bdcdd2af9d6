"""Self-speculative decoding of a masked model: its trunk drafts, its causal blocks verify, and the
distribution is theirs.

Campbell et al., arXiv 2510.03929. The masked cells of a row, in a random order, are drawn in windows of W.
The distribution of a window is

    q(x_1 | R) p(x_2 | R, x_1) ... p(x_W | R, x_1 .. x_{W-1})    R: known cells and earlier windows; p_1 = q_1

One pass of the trunk over R drafts the window, x_r ~ q_r at once. Verification passes of the few causal
blocks follow until the window is full: accept x_r from left to right with probability min(1, p_r(x_r) /
q_r(x_r)), at the first failure draw from norm((p_r - q_r)+); the later cells are drafted anew from the p that
the failed pass gave, which becomes their q. The first cell needs no verification, and each later pass yields
at least one cell, so a row never takes more passes, of either kind, than it has masked cells. W = 1 is one
cell per pass of the trunk in random order.

Deviations: where the paper runs the trunk again after a failure, here it runs again only when a window is
full. Else which conditionals a cell is drawn from would depend on what was accepted before, and the joint
distribution would be no product of any order's conditionals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import random_rank
from gentok.generators.base import SelfSpeculative
from gentok.samplers.any_order import OrderedState
from gentok.samplers.base import Sampler
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.samplers.speculation import accepted, residual
from gentok.settings import PositiveInt
from gentok.types import RowRNG

__all__ = ["SelfSpeculativeSampler"]


@dataclass(frozen=True)
class SelfSpeculativeSampler(Sampler, id="sampler/self_speculative"):
    """Self-speculative decoding in windows.

    Args:
        window: cells per pass of the trunk, W >= 1; the distribution depends on it.
    """

    requires = SelfSpeculative
    exact = True
    any_known = True

    window: PositiveInt = 8

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. calls: passes of both kinds; network_calls: trunk and verify. stats: drafts and
        accepted of all verifications."""
        windows = _Windows(self, request)
        drafted = stood = steps = 0
        while len(rows := windows.unfinished()):
            rows = rows[(windows.done == windows.end)[rows]]
            if len(rows):
                windows.draft(rows)
            rows = (windows.done < windows.end).nonzero()[:, 0]
            if len(rows):
                new, kept = windows.verify(rows)
                drafted, stood = drafted + new, stood + kept
            steps += 1
            request.report(windows.codes, steps, int(windows.counts.max()))
        return request.output(windows.codes, windows.calls, drafts=drafted, accepted=stood)

    _accept = staticmethod(accepted)

    def _order(self, masked: Tensor, rng: RowRNG) -> Tensor:
        return random_rank(masked, rng)


class _Windows(OrderedState):
    """A batch that is drawn in windows. begin, end int64 [B]: of each row's window, by ranks; guesses int64
    [B, W] and q float64 [B, W, V]: ids of the window's cells, drawn or drafted, and the distributions of the
    drafts; state: what the trunk gave."""

    def __init__(self, sampler: SelfSpeculativeSampler, request: SampleRequest):
        super().__init__(request, sampler._order(request.tokens.masked, request.rng), sampler.filter)
        width = min(sampler.window, self.codes.shape[1])  # a wider window has the same distribution
        self.ahead = torch.arange(width, device=self.codes.device)
        self.begin, self.end = torch.zeros_like(self.counts), torch.zeros_like(self.counts)
        self.guesses = self.codes.new_zeros(len(self.codes), width)
        self.q = torch.zeros(len(self.codes), width, request.model.spec.vocab, dtype=torch.float64, device=self.codes.device)
        self.accept, self.state = sampler._accept, None

    def draft(self, rows: Tensor) -> None:
        """A new window of some rows: a pass of the trunk, which sees all that is there, and one draft per
        cell; the first one stands."""
        self.begin[rows] = self.done[rows]
        self.end[rows] = torch.minimum(self.done[rows] + len(self.ahead), self.counts[rows])
        part = self.request.rows(rows, self.codes)
        logits, state = part.model.draft(part.tokens, part.condition)
        self._count(rows, "trunk")
        if self.state is None:
            self.state = state.new_zeros(len(self.codes), *state.shape[1:])
        self.state[rows], self.q[rows] = state, self._distributions(rows, logits)
        self.guesses[rows] = part.choose(self.q[rows].log(), part.rng)
        self.write(rows, self.guesses[rows, :1])
        self.done[rows] += 1

    def verify(self, rows: Tensor) -> tuple[int, int]:
        """A pass of the causal blocks over the drafts of some rows. How many drafts there were, and how many
        were accepted."""
        cells, size = self._window(rows), (self.end - self.begin)[rows]
        guesses, q, sure = self.guesses[rows], self.q[rows], (self.done - self.begin)[rows]
        filled = self._written(rows, cells, guesses, self.ahead < size[:, None])
        part = self.request.rows(rows, self.codes.index_copy(0, rows, filled))
        p = self._distributions(
            rows, part.model.verify(self.state[rows], part.tokens, (self.rank - self.begin[:, None, None])[rows].clamp(min=0))
        )
        self._count(rows, "verify")
        kept = self.accept(p, q, guesses, sure, size, part.rng)
        place = kept.clamp(max=len(self.ahead) - 1)[:, None, None].expand(-1, 1, p.shape[2])
        last = part.choose(residual(p.gather(1, place), q.gather(1, place))[:, 0], part.rng)
        again = part.choose(p.log(), part.rng)
        ids = torch.where(self.ahead < kept[:, None], guesses, torch.where(self.ahead == kept[:, None], last[:, None], again))
        self.guesses[rows], self.q[rows] = ids, torch.where((self.ahead > kept[:, None])[..., None], p, q)
        drawn = kept + (kept < size)
        self.done[rows] = self.begin[rows] + drawn
        self.codes[rows] = self._written(rows, cells, ids, self.ahead < drawn[:, None])
        return int((size - sure).sum()), int((kept - sure).sum())

    def _window(self, rows: Tensor) -> Tensor:
        """int64 [b, W]: the cells of rank begin + 1, ..., begin + W, all different; any, where a row has no
        such rank."""
        return self.cells[rows].gather(1, (self.begin[rows, None] + self.ahead) % self.cells.shape[1])

    def _written(self, rows: Tensor, cells: Tensor, ids: Tensor, where: Tensor) -> Tensor:
        """The codes [b, K N] of some rows with ids [b, W] in those of the cells that `where` picks."""
        codes = self.codes[rows]
        return codes.scatter(1, cells, torch.where(where, ids, codes.gather(1, cells)))

    def _distributions(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Filtered distributions of the window's cells, float64 [b, W, V]; any, beyond its end."""
        logits = logits.flatten(1, 2).gather(1, self._window(rows)[..., None].expand(-1, -1, logits.shape[3]))
        logits = logits.masked_fill((self.begin[rows, None] + self.ahead >= self.end[rows, None])[..., None], 0.0)
        return self.filter(logits).softmax(-1)

    def _count(self, rows: Tensor, network: str) -> None:
        self.calls[rows] += 1
        self.request.network_calls.add(self.request.model, self.codes[rows].numel(), network)
