"""Guesses of cells from cells nearby, for drafts: which cell of the same level a cell is likely to resemble."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.layouts import Layout
from gentok.types import Raster

__all__ = ["GUESSES", "guess_sources"]

GUESSES = ("above", "left", "random")


def guess_sources(guess: str, layout: Layout) -> Tensor:
    """Where the guess of every cell comes from.

    Args:
        guess: above: the cell above it in the grid, of the first row the one on its left; left: the position before it; random: nowhere.
            Grids without rows have nothing above, there it is the position before.
        layout: the order of the cells.

    Returns:
        int64 [S, G, 2]: step and slot of the cell that it comes from, of the same level and earlier in the order; -1 where there is none.
    """
    out = torch.full((*layout.level.shape, 2), -1)
    if guess == "random":
        return out
    grid, strides = layout.spec.grid, layout.spec.strides or (1,) * layout.spec.levels
    width = grid.w if isinstance(grid, Raster) else None
    for s, g in layout.exists.nonzero().tolist():
        k, n = int(layout.level[s, g]), int(layout.position[s, g])
        source = n - strides[k]
        if guess == "above" and width is not None and n >= width:
            source = n - width
        if source >= 0 and int(layout.step[k, source]) < s:
            out[s, g] = torch.stack((layout.step[k, source], layout.slot[k, source]))
    return out
