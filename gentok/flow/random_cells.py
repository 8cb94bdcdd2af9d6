"""Random choices among the cells of a row: subsets and orders, drawn from the row's own stream of random
numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.rng import RowRNG

__all__ = ["random_deepest", "random_rank", "random_subset", "rank_in_row"]


def rank_in_row(scores: Tensor) -> Tensor:
    """The rank of every entry among those of its row.

    Args:
        scores: [B, ...] of a type that has an order.

    Returns:
        int64 [B, ...]: 0 for the smallest entry of the row; equal entries are ranked by their place.
    """
    return scores.flatten(1).argsort(dim=1, stable=True).argsort(1).view(scores.shape)


def _shuffled(cells: Tensor, rng: RowRNG) -> Tensor:
    """cells bool [B, K, N] -> int64 [B, K, N]: 0, 1, ... in a random order for these cells, larger numbers
    for the others."""
    return rank_in_row(rng.uniform(*cells.shape[1:]).masked_fill(~cells, 2.0))


def random_subset(cells: Tensor, count: Tensor, rng: RowRNG) -> Tensor:
    """A uniformly random subset of each row's cells.

    Args:
        cells: bool [B, K, N].
        count: int64 [B], how many of them.
        rng: B rows of random numbers.

    Returns:
        bool [B, K, N].
    """
    return (_shuffled(cells, rng) < count[:, None, None]) & cells


def random_deepest(cells: Tensor, count: Tensor, rng: RowRNG) -> Tensor:
    """A random subset of each row's cells, which at every position are the deepest levels.

    How many of each position is multivariate hypergeometric, as by `random_subset`, whose arguments and result it has.
    """
    each = random_subset(cells, count, rng).sum(1, keepdim=True)
    from_below = cells.flip(1).cumsum(1).flip(1)  # 1 at a position's deepest cell
    return cells & (from_below <= each)


def random_rank(cells: Tensor, rng: RowRNG) -> Tensor:
    """A uniformly random order of each row's cells.

    Args:
        cells: bool [B, K, N].
        rng: B rows of random numbers.

    Returns:
        int64 [B, K, N]: 1, 2, ... at these cells, 0 elsewhere.
    """
    return torch.where(cells, _shuffled(cells, rng) + 1, 0)
