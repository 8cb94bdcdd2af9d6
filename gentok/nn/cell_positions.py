"""Where tokens stand: coordinates for rotary embedding, and learned embeddings that name a cell.

A raster has two axes, everything else one. The condition's tokens stand before the cells, a causal model's
`begin` between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.nn.rope import Rotation, rotation
from gentok.types import Line, Pyramid, Raster, TokenSpec

__all__ = ["cell_names", "held_cells", "rotation_tables"]


def rotation_tables(
    spec: TokenSpec, rope: str, places: int, head_width: int, position: Tensor, held: Tensor | None = None
) -> Rotation:  # fmt: skip
    """Rotations of a condition's tokens and, behind them, of cells.

    Args:
        spec: the tokens.
        rope: auto (axial on a raster, line elsewhere), line, axial, or none: nothing is rotated.
        places: how many tokens a condition can have.
        head_width: channels of an attention head.
        position: int64 [C], of the cells; -1 is a causal model's `begin`.
        held: int64 [C], where keys stand, if they stand elsewhere.

    Returns:
        A Rotation of places + C tokens.

    Raises:
        ValueError: no such rope; axial where there is no raster; a head width that does not split evenly.
    """
    if rope not in ("auto", "line", "axial", "none"):
        raise ValueError(f"rope must be auto, line, axial or none; got {rope!r}")
    if rope == "none":
        return rotation(torch.zeros(places + len(position), 1, dtype=torch.int64), head_width=head_width)
    raster = isinstance(spec.grid, Raster)
    if rope == "axial" and not raster:
        raise ValueError(f"rope=axial needs tokens on a raster; these lie on a {type(spec.grid).__name__.lower()}: use auto or line")
    place, axial = torch.arange(places), raster and rope != "line"
    before = torch.stack((torch.zeros_like(place), place - places), -1) if axial else place[:, None]
    query, key = (
        None if cells is None else torch.cat((before, _coordinates(spec, cells, axial, places))) for cells in (position, held)
    )
    return rotation(query, key, head_width=head_width)


def _coordinates(spec: TokenSpec, position: Tensor, axial: bool, places: int) -> Tensor:
    """position int64 [C] -> int64 [C, A]; on a line the condition's places come first."""
    if not axial:
        return (position + places + 1)[:, None]
    begin = position < 0
    row = torch.where(begin, 0, position.clamp(min=0) // spec.grid.w + 1)
    column = torch.where(begin, 0, position.clamp(min=0) % spec.grid.w)
    return torch.stack((row, column), -1)


def held_cells(spec: TokenSpec, head_width: int) -> Rotation:
    """Rotations as LlamaGen's (arXiv 2406.06525): fed step i > 0 is rotated by the row and column of cell i - 1,
    which it holds, queries and keys alike; of step 0 both become zeros.

    Args:
        spec: tokens on a raster of N cells.
        head_width: channels of an attention head.

    Returns:
        A Rotation of N steps.

    Raises:
        ValueError: the head's width does not split evenly.
    """
    cell = torch.arange(spec.positions - 1)
    cos, sin = rotation(torch.stack((cell // spec.grid.w, cell % spec.grid.w), -1), head_width=head_width)
    nothing = torch.zeros(1, *cos.shape[1:])
    return torch.cat((nothing, cos)), torch.cat((nothing, sin))


def cell_names(spec: TokenSpec, level: Tensor | None, position: Tensor) -> tuple[Tensor, int]:
    """Rows of one table of embeddings whose sum says "this cell".

    They are of its level (where there are several), of its row and column on a raster, and of its position on
    a line or a pyramid. Time has no name, so that lengths stay free.

    Args:
        spec: the tokens.
        level: int64 [C]; None: levels are not named.
        position: int64 [C], >= 0.

    Returns:
        int64 [C, J], indices into the table (J may be 0), and how many rows the table has.
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
