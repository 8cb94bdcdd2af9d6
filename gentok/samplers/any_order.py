"""One cell per call in the model's order of the masked cells, or in a random one; exact. For AnyOrder generators; keeps any known cells.

The sequential sampler of any-subset models (Guo and Ermon, arXiv 2504.20456): masked cell r of a row is drawn from
p(. | known cells, masked cells 1 .. r - 1), so a row of n masked cells takes n calls. Where order = random, every row's
order is drawn first, each with the same probability: the distribution is then the mean of the orders' distributions.
Rows of fewer masked cells leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.errors import check_choice
from gentok.generators.base import AnyOrder, random_rank
from gentok.samplers.base import Sampler
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.types import RowRNG

__all__ = ["ORDERS", "AnyOrderSampler", "cell_of_rank", "ranks_of"]

ORDERS = ("left_to_right", "random")


def ranks_of(model: AnyOrder, masked: Tensor, order: str, rng: RowRNG) -> Tensor:
    """The order in which masked cells are drawn.

    Args:
        model: whose order left_to_right is.
        masked: bool [B, K, N].
        order: one of ORDERS.
        rng: for random orders.

    Returns:
        Tensor: int64 [B, K, N], 1, 2, ... at masked cells and 0 elsewhere.
    """
    return model.rank(masked) if order == "left_to_right" else random_rank(masked, rng)


def cell_of_rank(rank: Tensor) -> Tensor:
    """The cells in their order.

    Args:
        rank: int64 [B, K, N], as of `ranks_of`.

    Returns:
        Tensor: int64 [B, K N]; [:, r - 1] is the cell of rank r as an index into a row's K N cells (any, where there is none).
    """
    flat = rank.flatten(1)
    return torch.where(flat > 0, flat, flat.shape[1] + 1).argsort(dim=1, stable=True)


@dataclass(frozen=True)
class AnyOrderSampler(Sampler, id="sampler/any_order"):
    """One cell per call.

    Args:
        order: left_to_right (the model's own) or random: a distribution that only a model trained in random orders has learnt.
    """

    requires = AnyOrder
    exact = True
    any_known = True

    order: str = "left_to_right"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, ORDERS)

    def run(self, request: SampleRequest) -> SampleOutput:
        masked = request.tokens.masked
        rank, counts = ranks_of(request.model, masked, self.order, request.rng), masked.sum((1, 2))
        cells, codes = cell_of_rank(rank), request.tokens.codes.flatten(1)
        rounds = int(counts.max()) if len(counts) else 0
        for r in range(rounds):
            rows = (counts > r).nonzero()[:, 0]
            part, at = request.rows(rows, codes), cells[rows, r]
            logits = part.model.laws(part.tokens, part.condition, rank[rows], at[:, None])[:, 0]
            part.network_calls.add(part.model, part.tokens.codes.numel())
            codes[rows, at] = part.choose(self.filter(logits), part.rng)
            request.report(codes, r + 1, rounds)
        return request.output(codes, counts)
