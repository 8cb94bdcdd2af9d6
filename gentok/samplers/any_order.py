"""One cell per call in the model's order of the masked cells, or in a random one; exact. For AnyOrder
generators; keeps any known cells.

The sequential sampler of any-subset models (Guo and Ermon, arXiv 2504.20456): masked cell r of a row is drawn
from p(. | known cells, masked cells 1 .. r - 1), so a row of n masked cells takes n calls. Where order =
random, every row's order is drawn first, each with the same probability: the distribution is then the mean of
the orders' distributions. Rows of fewer masked cells leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import random_rank
from gentok.generators.base import AnyOrder
from gentok.samplers.base import Sampler, setting
from gentok.samplers.request import SampleOutput, SampleRequest

__all__ = ["ORDERS", "AnyOrderSampler", "OrderedState", "cell_of_rank", "ordered_state"]

ORDERS = ("left_to_right", "random")


def cell_of_rank(rank: Tensor) -> Tensor:
    """The cells in their order.

    Args:
        rank: int64 [B, K, N], 1, 2, ... at the cells of the order and 0 elsewhere.

    Returns:
        Tensor: int64 [B, K N]; [:, r - 1] is the cell of rank r as an index into a row's K N cells (any,
            where there is none).
    """
    flat = rank.flatten(1)
    return torch.where(flat > 0, flat, flat.shape[1] + 1).argsort(dim=1, stable=True)


class OrderedState:
    """A batch whose masked cells are drawn in an order.

    Args:
        request: what is to be sampled.
        rank: int64 [B, K, N], that order: 1, 2, ... at the masked cells and 0 elsewhere.
        filter: logits [..., V] -> those of the distribution that ids are drawn from.

    Attributes:
        cells: int64 [B, K N], the cells by rank.
        counts: int64 [B], how many cells a row draws.
        done: int64 [B], how many of them it has drawn.
        codes: int64 [B, K N], what is drawn so far; written in place.
        calls: int64 [B], network calls that each row needed.
    """

    def __init__(self, request: SampleRequest, rank: Tensor, filter: Callable[[Tensor], Tensor]):
        self.request, self.rank, self.filter = request, rank, filter
        self.cells, self.counts = cell_of_rank(rank), request.tokens.masked.sum((1, 2))
        self.codes = request.tokens.codes.flatten(1)
        self.done, self.calls = torch.zeros_like(self.counts), torch.zeros_like(self.counts)

    def unfinished(self) -> Tensor:
        """int64 [b]: the rows that have cells to draw."""
        return (self.done < self.counts).nonzero()[:, 0]

    def logits(self, rows: Tensor, n: int, seen: Tensor | None = None) -> Tensor:
        """One network call for the next n cells of some rows of an AnyOrder generator.

        Args:
            rows: int64 [b].
            n: how many cells, of rank done + 1 .. done + n.
            seen: int64 [b], the rank up to which cells are given; None: all of lower rank.

        Returns:
            Tensor: filtered logits, float64 [b, n, V]; any, where a row has no such rank.
        """
        part = self.request.rows(rows, self.codes)
        place = self.done[rows, None] + torch.arange(n, device=rows.device)
        at = self.cells[rows].gather(1, place.clamp(max=self.cells.shape[1] - 1))
        logits = part.model.conditionals(part.tokens, part.condition, self.rank[rows], at, seen)
        part.network_calls.add(part.model, part.tokens.codes.numel())
        self.calls[rows] += 1
        return self.filter(logits.masked_fill((place >= self.counts[rows, None])[..., None], 0.0))  # these may be -inf everywhere

    def write(self, rows: Tensor, ids: Tensor) -> None:
        """Writes ids int64 [b, n] into the next n cells of some rows, as far as there are so many."""
        place = self.done[rows, None] + torch.arange(ids.shape[1], device=rows.device)
        b, j = (place < self.counts[rows, None]).nonzero().unbind(1)
        self.codes[rows[b], self.cells[rows[b], place[b, j]]] = ids[b, j]


def ordered_state(request: SampleRequest, order: str, filter: Callable[[Tensor], Tensor]) -> OrderedState:
    """The masked cells of an AnyOrder generator's request in one of ORDERS."""
    masked = request.tokens.masked
    rank = request.model.rank(masked) if order == "left_to_right" else random_rank(masked, request.rng)
    return OrderedState(request, rank, filter)


@dataclass(frozen=True)
class AnyOrderSampler(Sampler, id="sampler/any_order"):
    """One cell per call.

    Args:
        order: left_to_right (the model's own) or random: a distribution that only a model trained in random
            orders has learnt.
    """

    requires = AnyOrder
    exact = True
    any_known = True
    marks = True

    order: str = setting("left_to_right", choices=ORDERS)

    def run(self, request: SampleRequest) -> SampleOutput:
        state = ordered_state(request, self.order, self.filter)
        rounds = int(state.counts.max()) if len(state.counts) else 0
        for r in range(rounds):
            rows = state.unfinished()
            cell, positions = state.cells[rows, state.done[rows]], request.tokens.codes.shape[2]
            ids = request.choose_at(state.logits(rows, 1)[:, 0], request.rng.rows(rows), cell // positions, cell % positions)
            state.write(rows, ids[:, None])
            state.done[rows] += 1
            request.report(state.codes, r + 1, rounds)
        return request.output(state.codes, state.calls)
