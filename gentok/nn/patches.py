"""Images as sequences of patches, and where a patch lies.

Positions are two-dimensional sines and cosines (Vaswani et al., arXiv 1706.03762, split between rows and columns as in MAE, arXiv
2111.06377). An image of another size than the network was made for lies in the same coordinates: its patches are spread over the same
range, as if the table of positions were interpolated (as ViT does, arXiv 2010.11929).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["patchify", "unpatchify", "positions_2d"]


def patchify(x: Tensor, patch: int) -> Tensor:
    """[B, C, h p, w p] -> [B, h w, C p p], row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(x: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`.

    Args:
        x: [B, h w, C p p].
        patch: p, side of a patch.
        grid: (h, w), in patches.

    Returns:
        [B, C, h p, w p].
    """
    return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid), patch)


def positions_2d(
    grid: tuple[int, int], home: tuple[int, int], width: int, theta: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Sines and cosines of the places of a grid's cells, in the coordinates of another grid.

    Args:
        grid: (h, w).
        home: the grid whose coordinates they have.
        width: channels, half of them of the row and half of the column.
        theta: base of the wave lengths.
        device: of the result.

    Returns:
        float32 [h w, width].

    Raises:
        ValueError: 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(f"two-dimensional positions need a width that 4 divides; got {width}")
    rates = theta ** (-torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    sides = []
    for n, at_home in zip(grid, home):
        place = (torch.arange(n, dtype=torch.float64, device=device) + 0.5) * (at_home / n) - 0.5
        angle = place[:, None] * rates
        sides.append(torch.cat((angle.sin(), angle.cos()), 1))
    rows, columns = sides[0][:, None].expand(-1, grid[1], -1), sides[1][None].expand(grid[0], -1, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1).float()
