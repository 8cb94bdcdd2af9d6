"""The entities of xAR (Ren et al., arXiv 2502.20388, section 3): groups of tokens that are linear maps of a grid of vectors.

    token       one vector: next-token prediction
    cell        k x k vectors that lie together, the cells row by row
    subsample   k x k vectors that lie apart, one of every (h / k) x (w / k) vectors: first those in the upper left corner of each
    scale       the grid, pooled by area to ever larger sizes: side k (the smaller one's), 2 k, ... and at the end the grid itself
    image       all vectors: plain flow matching

The vectors of an entity stand in its own order, row by row, and all entities are one sequence of T vectors. Only of scales is T above N.
Of them the last one is the result: it has the grid's own size, so what the coarser ones say enters by attention alone.

The paper names the five; its code has cells. What is left open is our reading: the smallest scale, and that a scale is the mean of the
vectors that it covers, not what a coarser one leaves over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.types import Raster

__all__ = ["EntityKind", "EntityMap", "entity_map"]

EntityKind = Literal["token", "cell", "subsample", "scale", "image"]


@dataclass(frozen=True)
class EntityMap:
    """How a grid is split into entities, and put together again.

    Attributes:
        grid: of N vectors.
        sizes: vectors of each entity; together T.
        place: float [T, 2], row and column of each vector in the grid; of a pooled one the middle of what it covers.
        order: int64 [N], which vector of the grid each of the sequence is; None: of scales.
        words: what the entities are, for messages.
        sides: (rows, columns) of each entity, whose vectors are a grid of their own.
    """

    grid: Raster
    sizes: tuple[int, ...]
    place: Tensor
    order: Tensor | None
    words: str
    sides: tuple[tuple[int, int], ...]

    @property
    def entity(self) -> Tensor:
        """int64 [T]: the entity that each vector of the sequence belongs to."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    def split(self, values: Tensor) -> Tensor:
        """values float [B, C, N] of the grid -> float [B, T, C], entity behind entity."""
        if self.order is not None:
            return values[:, :, self.order.to(values.device)].transpose(1, 2)
        image = values.unflatten(2, (self.grid.h, self.grid.w))
        return torch.cat([F.adaptive_avg_pool2d(image, side).flatten(2) for side in self.sides], 2).transpose(1, 2)

    def join(self, entities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Vectors of the grid, of the first entities.

        Args:
            entities: float [B, n, C] each, at least one.

        Returns:
            float [B, C, N], NaN where a further entity is needed, and bool [N], where none is.
        """
        x = torch.cat(list(entities), 1).transpose(1, 2)
        positions, start = self.grid.positions, 0
        order = self.order
        if order is None:
            start = sum(self.sizes[:-1])
            order = torch.arange(positions)
        order = order[: max(x.shape[2] - start, 0)].to(x.device)
        values = x.new_full((len(x), x.shape[1], positions), torch.nan)
        there = torch.zeros(positions, dtype=torch.bool, device=x.device)
        values[:, :, order], there[order] = x[:, :, start:], True
        return values, there

    def known(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Entities of which everything is known.

        Args:
            positions: bool [B, N], the known vectors of the grid.

        Returns:
            bool [B, E], and bool [B, N]: the known vectors that lie in none of them.
        """
        if self.order is None:
            whole = positions.all(1, keepdim=True)
            return whole.expand(-1, len(self.sizes)), positions & ~whole
        parts = positions[:, self.order.to(positions.device)].split(self.sizes, 1)
        entities = torch.stack([part.all(1) for part in parts], 1)
        sizes = torch.tensor(self.sizes, device=positions.device)
        covered = torch.zeros_like(positions)
        covered[:, self.order.to(positions.device)] = entities.repeat_interleave(sizes, 1)
        return entities, positions & ~covered


def entity_map(kind: EntityKind, grid: Raster, side: int | None = None) -> EntityMap:
    """The entities of a grid.

    Args:
        kind: of entities.
        grid: of the vectors.
        side: k; None: half the grid for cells and subsamples (the paper's best: 8 of 16); of scales the smallest that halving the grid
            leads to. Tokens and images have none.

    Returns:
        EntityMap.

    Raises:
        ValueError: the grid has no such entities.
    """
    h, w = grid.h, grid.w
    index = torch.arange(h * w).view(h, w)
    if kind in ("token", "image"):
        if side is not None:
            raise ValueError(f"entity={kind} has no side; leave entity_side={side} out")
        sides = ((1, 1),) * (h * w) if kind == "token" else ((h, w),)
        return EntityMap(grid, tuple(a * b for a, b in sides), _places(grid, h, w), index.flatten(), f"{kind}s", sides)
    if kind == "scale":
        return _scales(grid, side)
    k = max(min(h, w) // 2, 1) if side is None else side
    if k > min(h, w) or h % k or w % k:
        able = [str(n) for n in range(1, min(h, w) + 1) if not (h % n or w % n)]
        raise ValueError(f"entity={kind} with entity_side={k} does not divide a grid of {h} x {w}: set entity_side to {' or '.join(able)}")
    rows, columns = (h // k, w // k) if kind == "cell" else (k, k)
    order = index.view(rows, h // rows, columns, w // columns)
    order = (order.permute(0, 2, 1, 3) if kind == "cell" else order.permute(1, 3, 0, 2)).flatten()
    count = h * w // (k * k)
    return EntityMap(grid, (k * k,) * count, _places(grid, h, w)[order], order, f"{kind}s of {k} x {k}", ((k, k),) * count)


def _scales(grid: Raster, side: int | None) -> EntityMap:
    h, w = grid.h, grid.w
    sides = [(h, w)]
    while sides[0][0] % 2 == 0 and sides[0][1] % 2 == 0 and min(sides[0]) != side:
        sides.insert(0, (sides[0][0] // 2, sides[0][1] // 2))
    if side is not None and min(sides[0]) != side:
        able = " or ".join(str(min(s)) for s in sides)
        raise ValueError(f"entity=scale: halving a grid of {h} x {w} does not lead to entity_side={side}: set entity_side to {able}")
    place = torch.cat([_places(grid, *s) for s in sides])
    return EntityMap(grid, tuple(a * b for a, b in sides), place, None, "scales of the whole", tuple(sides))


def _places(grid: Raster, h: int, w: int) -> Tensor:
    """float64 [h w, 2]: the middles of h x w equal parts, in units of the grid's rows and columns."""
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    return torch.stack(((y + 0.5) * grid.h / h - 0.5, (x + 0.5) * grid.w / w - 0.5), -1).flatten(0, 1)
