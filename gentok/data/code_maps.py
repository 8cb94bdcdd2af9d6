"""Codes as maps: a colour per id, in the places that the cells have. What uses few codes, or the same ones everywhere, is seen at once."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.types import Pyramid, Raster, Tokens

__all__ = ["code_maps"]

CELL = 4
"""Pixels of a cell's side."""
MOST = 256
"""Cells drawn of a row; of longer sounds the beginning."""


def code_maps(tokens: Tokens) -> Tensor:
    """Draws codes.

    Args:
        tokens: B items. Levels of a raster and scales of a pyramid lie side by side; of sounds and lines each level is a row.

    Returns:
        Tensor: images float32 [B, 3, H, W] in [-1, 1]; neighbouring ids differ in colour, the same id has one colour at a level. White
        where there is no cell, grey where it is not drawn yet.
    """
    codes, grid = tokens.codes.detach().cpu(), tokens.spec.grid
    gap = codes.new_full((1, 1), -1)
    if isinstance(grid, Raster):
        parts = list(codes.unflatten(2, (grid.h, grid.w)).unbind(1))
    elif isinstance(grid, Pyramid):
        ends = [sum(side * side for side in grid.sides[: i + 1]) for i in range(len(grid.sides))]
        scales = [codes[:, k, end - side * side : end].unflatten(1, (side, side)) for k in range(codes.shape[1])
                  for side, end in zip(grid.sides, ends)]  # fmt: skip
        high = max(grid.sides)
        parts = [torch.nn.functional.pad(scale, (0, 0, 0, high - scale.shape[1]), value=-1) for scale in scales]
    else:
        parts = [codes[:, :, :MOST]]
    columns = [column for part in parts for column in (part, gap.expand(part.shape[0], part.shape[1], 1))][:-1]
    return _colours(torch.cat(columns, 2)).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


def _colours(ids: Tensor) -> Tensor:
    """int64 [B, H, W] -> float [B, 3, H, W]: hues by the golden ratio, three brightnesses in turn."""
    hue = (ids * 0.61803398875) % 1
    bright = torch.tensor([0.95, 0.7, 0.45])[ids.clamp(min=0) % 3]
    channels = [bright * (1 - 0.75 * (1 - ((hue * 6 + shift) % 6 - 3).abs().sub(1).clamp(0, 1))) for shift in (0, 4, 2)]
    image = torch.stack(channels, 1) * 2 - 1
    image = torch.where((ids == -1)[:, None], 1.0, image)
    return torch.where((ids == -2)[:, None], 0.0, image).float()
