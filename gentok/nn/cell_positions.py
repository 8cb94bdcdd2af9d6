"""Where tokens stand: coordinates for rotary embedding, and learned embeddings that name a cell.

A raster has two axes, everything else one. The condition's tokens stand before the cells, a causal model's `begin` between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.types import Line, Pyramid, Raster, TokenSpec

__all__ = ["axes_of", "cell_coordinates", "prefix_coordinates", "cell_names"]


def axes_of(spec: TokenSpec, rope: str) -> int:
    """rope auto: axial on a raster, line elsewhere. Raises ValueError on another name, and on axial where there is no raster."""
    if rope not in ("auto", "line", "axial"):
        raise ValueError(f"rope must be auto, line or axial; got {rope!r}")
    raster = isinstance(spec.grid, Raster)
    if rope == "axial" and not raster:
        raise ValueError(f"rope=axial needs tokens on a raster; these lie on a {type(spec.grid).__name__.lower()}: use auto or line")
    return 2 if raster and rope != "line" else 1


def cell_coordinates(spec: TokenSpec, position: Tensor, axes: int, places: int) -> Tensor:
    """position int64 [...] -> int64 [..., A]; `places` is how many tokens a condition may have, which come before on a line.
    Position -1 is a causal model's `begin`."""
    if axes == 1:
        return (position + places + 1)[..., None]
    begin = position < 0
    row = torch.where(begin, 0, position.clamp(min=0) // spec.grid.w + 1)
    column = torch.where(begin, 0, position.clamp(min=0) % spec.grid.w)
    return torch.stack((row, column), -1)


def prefix_coordinates(place: Tensor, axes: int, places: int) -> Tensor:
    """place int64 [P] -> int64 [P, A]: before `begin`, in its line."""
    return place[..., None] if axes == 1 else torch.stack((torch.zeros_like(place), place - places), -1)


def cell_names(spec: TokenSpec, level: Tensor | None, position: Tensor) -> tuple[Tensor, int]:
    """Indices into one table whose rows sum up to "this cell": its level (where there are several and `level` is not None), its row and
    column on a raster, its position on a line or pyramid; time has no name, so that lengths stay free.

    level, position int64 [...] >= 0 -> (index int64 [..., J], rows of the table); J may be 0.
    """
    columns: list[tuple[Tensor, int]] = []
    if level is not None and spec.levels > 1:
        columns.append((level, spec.levels))
    if isinstance(spec.grid, Raster):
        columns += [(position // spec.grid.w, spec.grid.h), (position % spec.grid.w, spec.grid.w)]
    elif isinstance(spec.grid, (Line, Pyramid)):
        columns.append((position, spec.positions))
    index, offset = [], 0
    for values, size in columns:
        index.append(values + offset)
        offset += size
    return (torch.stack(index, -1) if index else position.new_zeros(*position.shape, 0)), offset
