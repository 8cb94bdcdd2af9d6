"""Self-speculative decoding of a masked model: its trunk drafts, its causal blocks verify, and the law is theirs.

Campbell et al., arXiv 2510.03929. The holes of a row, in a random order, are drawn in windows of W. The law of a window is

    q(x_1 | R) p(x_2 | R, x_1) ... p(x_W | R, x_1 .. x_{W-1})        R: known cells and earlier windows; p_1 = q_1

One pass of the trunk over R drafts the window, x_r ~ q_r at once. Verification passes of the few causal blocks follow until the window is
full: accept x_r from left to right with probability min(1, p_r(x_r) / q_r(x_r)), at the first failure draw from norm((p_r - q_r)+); the
later cells are drafted anew from the p that the failed pass gave, which becomes their q. The first cell needs no verification, and each
later pass yields at least one cell, so a row never takes more passes, of either kind, than it has holes. W = 1 is one cell per pass of the
trunk in random order.

Deviations: where the paper runs the trunk again after a failure, here it runs again only when a window is full. Else which conditionals a
cell is drawn from would depend on what was accepted before, and the law would be no product of any order's conditionals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import random_rank
from gentok.generators.base import SelfSpeculative
from gentok.samplers.any_order import cell_of_rank
from gentok.samplers.base import CellSampler, Choice, NetworkCalls, OnStep, SampleOutput
from gentok.samplers.speculation import accepted, residual
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["SelfSpeculativeSampler"]


@dataclass(frozen=True)
class SelfSpeculativeSampler(CellSampler, id="sampler/self_speculative"):
    """window: cells per pass of the trunk, W >= 1; it is part of the law."""

    requires = SelfSpeculative
    exact = True
    any_known = True

    window: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window, the cells per pass of the trunk, must be >= 1; got {self.window}")

    def run(
        self, model: SelfSpeculative, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None
    ) -> SampleOutput:
        """As Sampler. calls: passes of both kinds; network_calls: trunk and verify. stats: drafts and accepted of all verifications."""
        rank = self._order(tokens.masked, rng)
        cells, counts = cell_of_rank(rank), tokens.masked.sum((1, 2))
        codes = tokens.codes.flatten(1)
        width = min(self.window, codes.shape[1])  # a wider window is the same law
        done, begin, used = torch.zeros_like(counts), torch.zeros_like(counts), torch.zeros_like(counts)
        end, ahead = torch.zeros_like(counts), torch.arange(width, device=codes.device)
        guesses = torch.zeros(len(codes), width, dtype=torch.int64, device=codes.device)
        q = torch.zeros(len(codes), width, model.spec.vocab, dtype=torch.float64, device=codes.device)
        state: Tensor | None = None
        calls, drafted, stood, steps = NetworkCalls(), 0, 0, 0

        def grid(rows: Tensor, values: Tensor) -> Tokens:
            return Tokens(values.view(-1, *tokens.codes.shape[1:]), tokens.spec, tokens.rows(rows).lengths)

        def laws(rows: Tensor, logits: Tensor) -> Tensor:
            """Filtered laws of the window's cells, float64 [b, W, V]; what lies beyond its end may be any."""
            at = self._window(cells[rows], begin[rows], width)
            law = logits.flatten(1, 2).gather(1, at[..., None].expand(-1, -1, logits.shape[3]))
            law = law.masked_fill((begin[rows, None] + ahead >= end[rows, None])[..., None], 0.0)
            return self.filter(law).softmax(-1)

        while bool((done < counts).any()):
            rows = ((done == end) & (done < counts)).nonzero()[:, 0]
            if len(rows):  # a new window: the trunk sees all that is there
                begin[rows], end[rows] = done[rows], torch.minimum(done[rows] + width, counts[rows])
                logits, new = model.draft(grid(rows, codes[rows]), condition.rows(rows))
                calls.add(model, codes[rows].numel(), "trunk")
                used[rows] += 1
                state = new.new_zeros(len(codes), *new.shape[1:]) if state is None else state
                state[rows], q[rows] = new, laws(rows, logits)
                guesses[rows] = choose(q[rows].log(), rng.rows(rows))
                codes[rows, cells[rows, begin[rows]]] = guesses[rows, 0]
                done[rows] += 1
            rows = (done < end).nonzero()[:, 0]
            if len(rows):
                own, at = rng.rows(rows), self._window(cells[rows], begin[rows], width)
                inside = begin[rows, None] + ahead < end[rows, None]
                filled = codes[rows].scatter(1, at, torch.where(inside, guesses[rows], codes[rows].gather(1, at)))
                relative = (rank[rows] - begin[rows, None, None]).clamp(min=0)
                p = laws(rows, model.verify(state[rows], grid(rows, filled), relative))
                calls.add(model, filled.numel(), "verify")
                used[rows] += 1
                sure, size = (done - begin)[rows], (end - begin)[rows]
                kept = self._accept(p, q[rows], guesses[rows], sure, size, own)
                place = kept.clamp(max=width - 1)[:, None, None].expand(-1, 1, p.shape[2])
                last = choose(residual(p.gather(1, place), q[rows].gather(1, place))[:, 0], own)
                again = choose(p.log(), own)
                failed = kept < size
                fixed = torch.where(ahead < kept[:, None], guesses[rows], torch.where(ahead == kept[:, None], last[:, None], again))
                later = (ahead > kept[:, None])[..., None]
                guesses[rows], q[rows] = fixed, torch.where(later, p, q[rows])
                done[rows] = begin[rows] + kept + failed
                settled = begin[rows, None] + ahead < done[rows, None]
                codes[rows] = codes[rows].scatter(1, at, torch.where(settled, fixed, codes[rows].gather(1, at)))
                drafted, stood = drafted + int((size - sure).sum()), stood + int((kept - sure).sum())
            steps += 1
            if on_step is not None:
                on_step(Tokens(codes.view_as(tokens.codes).clone(), tokens.spec, tokens.lengths), steps, int(counts.max()))
        out = Tokens(codes.view_as(tokens.codes), tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, used, dict(calls), stats={"drafts": drafted, "accepted": stood})

    _accept = staticmethod(accepted)

    def _order(self, masked_cells: Tensor, rng: RowRNG) -> Tensor:
        return random_rank(masked_cells, rng)

    @staticmethod
    def _window(cells: Tensor, begin: Tensor, width: int) -> Tensor:
        """cells int64 [b, K N] by rank, begin int64 [b] -> int64 [b, W]: those of rank begin + 1, ..., begin + W, all different; any, where
        a row has no such rank."""
        at = begin[:, None] + torch.arange(width, device=cells.device)
        return cells.gather(1, at % cells.shape[1])
