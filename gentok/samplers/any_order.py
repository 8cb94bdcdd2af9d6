"""One cell per call in the model's order of the holes, or in a random one; exact. For AnyOrder generators; keeps any set of known cells.

The sequential sampler of any-subset models (Guo and Ermon, arXiv 2504.20456): hole r of a row is drawn from p(. | known cells, holes
1 .. r - 1), so a row of n holes takes n calls. Where order = random, every row's order is drawn first, each as likely: the law is then the
mean of the orders' laws. Rows of fewer holes leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import random_rank
from gentok.generators.base import AnyOrder
from gentok.samplers.base import CellSampler, Choice, NetworkCalls, OnStep, SampleOutput
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["AnyOrderSampler", "ORDERS", "cell_of_rank", "check_order", "ranks_of"]

ORDERS = ("left_to_right", "random")


def check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")


def ranks_of(model: AnyOrder, masked_cells: Tensor, order: str, rng: RowRNG) -> Tensor:
    """int64 [B, K, N]: the order in which the holes, bool [B, K, N], are drawn; 0 at all other cells."""
    return model.rank(masked_cells) if order == "left_to_right" else random_rank(masked_cells, rng)


def cell_of_rank(rank: Tensor) -> Tensor:
    """rank int64 [B, K, N] -> int64 [B, K N]: [:, r - 1] is the cell of rank r, as an index into a row's K N cells (any, where there is
    none)."""
    flat = rank.flatten(1)
    return torch.where(flat > 0, flat, flat.shape[1] + 1).argsort(dim=1, stable=True)


@dataclass(frozen=True)
class AnyOrderSampler(CellSampler, id="sampler/any_order"):
    """order: left_to_right (the model's own) or random: a law that only a model trained in random orders has learnt."""

    requires = AnyOrder
    exact = True
    any_known = True

    order: str = "left_to_right"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order)

    def run(
        self, model: AnyOrder, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None
    ) -> SampleOutput:
        rank = ranks_of(model, tokens.masked, self.order, rng)
        cells, counts = cell_of_rank(rank), tokens.masked.sum((1, 2))
        codes, calls, rounds = tokens.codes.flatten(1), NetworkCalls(), int(counts.max()) if len(counts) else 0
        for r in range(1, rounds + 1):
            rows = (counts >= r).nonzero()[:, 0]
            now = Tokens(codes[rows].view(-1, *tokens.codes.shape[1:]), tokens.spec, tokens.rows(rows).lengths)
            at = cells[rows, r - 1]
            law = model.conditionals(now, condition.rows(rows), rank[rows], at[:, None])[:, 0]
            calls.add(model, now.codes.numel())
            codes[rows, at] = choose(self.filter(law), rng.rows(rows))
            if on_step is not None:
                on_step(Tokens(codes.view_as(tokens.codes).clone(), tokens.spec, tokens.lengths), r, rounds)
        out = Tokens(codes.view_as(tokens.codes), tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, counts, dict(calls))
