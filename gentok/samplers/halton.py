"""Halton order: cells are revealed in an order that spreads evenly over the image, whatever the network says.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", arXiv 2503.17076. The positions of a raster are ordered by the
2-D Halton sequence (radical inverses in base 2 for the row and 3 for the column, from index 1), each cell where a point first falls into
it. Cells that are revealed together then lie far apart, and tell little of each other. Step i of T leaves floor(holes gamma(i / T))
holes, gamma = arccos as in the released code, and a row of no more than T holes fills one per step; ids are drawn from their laws,
without confidence.

An approximation as far as several cells are drawn in a step. The order does not look at ids, so with one cell per step (steps >= holes)
nothing is lost where the conditionals agree: then it is exact.

Choices: a roll moves the order by a random shift around the edges, drawn per row, so that not every image starts at the same cell.
Lines and frames use the radical inverse in base 2; a pyramid is ordered scale by scale, coarse first. The levels of a position follow each
other, coarse first. Each row counts its own holes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import rank_in_row
from gentok.samplers.stepwise import SCHEDULES, masked_counts
from gentok.samplers.unmasking import Unmasking, UnmaskingSampler
from gentok.types import Pyramid, Raster, TokenSpec

__all__ = ["Halton", "halton_points", "radical_inverse"]


def radical_inverse(index: int, base: int) -> float:
    """The digits of index >= 0 in `base`, mirrored at the point: in [0, 1)."""
    out, unit = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        out, unit = out + digit * unit, unit / base
    return out


@functools.lru_cache(maxsize=16)
def halton_points(h: int, w: int) -> tuple[tuple[int, int], ...]:
    """All cells (row, column) of an h x w grid in the order in which the Halton sequence first falls into them."""
    seen: dict[tuple[int, int], None] = {}
    index = 0
    while len(seen) < h * w:
        index += 1
        seen.setdefault((int(radical_inverse(index, 2) * h), int(radical_inverse(index, 3) * w)))
    return tuple(seen)


def _blocks(spec: TokenSpec) -> list[tuple[int, int, int]]:
    """(first position, height, width) of each scale; a line is one row high."""
    if isinstance(spec.grid, Raster):
        return [(0, spec.grid.h, spec.grid.w)]
    if isinstance(spec.grid, Pyramid):
        sides = spec.grid.sides
        return [(sum(s * s for s in sides[:i]), side, side) for i, side in enumerate(sides)]
    return [(0, spec.positions, 1)]  # base 2 for the only axis that there is


def _ranks(spec: TokenSpec, shift: Tensor) -> Tensor:
    """shift float64 [B, 2] in [0, 1) -> int64 [B, N]: the place of each position in each row's order."""
    out = torch.empty(len(shift), spec.positions, dtype=torch.int64, device=shift.device)
    for first, h, w in _blocks(spec):
        points = torch.tensor(halton_points(h, w), device=shift.device)
        moved = (points + (shift[:, None] * torch.tensor([h, w], device=shift.device)).long()) % torch.tensor([h, w], device=shift.device)
        at = first + moved[..., 0] * w + moved[..., 1]
        out.scatter_(1, at, (first + torch.arange(h * w, device=shift.device)).expand(len(shift), -1))
    return out


@dataclass(frozen=True)
class Halton(UnmaskingSampler, id="sampler/halton"):
    """steps: network calls at most; one cell per step where there are no more holes than steps. schedule: of the share still masked, one of
    those of maskgit. roll: every row's order is moved by a random shift."""

    steps: int = 32
    schedule: str = "arccos"
    roll: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1; got {self.steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no masking schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")

    def fill(self, filling: Unmasking) -> None:
        rng, spec = filling.rng, filling.spec
        counts = self._counts(filling.begun)
        shift = rng.uniform(2) if self.roll else torch.zeros(rng.batch, 2, dtype=torch.float64, device=rng.device)
        levels = torch.arange(spec.levels, device=shift.device)
        place = _ranks(spec, shift)[:, None] * spec.levels + levels[:, None]
        # The rank of every hole among the holes of its row; what was known comes last.
        rank = rank_in_row(place.masked_fill(~filling.free, spec.levels * spec.positions))
        left = filling.begun
        for i in range(counts.shape[1]):
            rows = filling.rows(left > 0)
            if not len(rows):
                break
            done, upto = (filling.begun - left)[rows], (filling.begun - counts[:, i])[rows]
            now = (rank[rows] >= done[:, None, None]) & (rank[rows] < upto[:, None, None])
            filling.fill(rows, filling.predict(rows), now)
            left = counts[:, i]
            filling.step(i + 1, counts.shape[1])

    def _counts(self, masked_cells: Tensor) -> Tensor:
        """int64 [B, calls]: cells that are masked after each call."""
        most = int(masked_cells.max()) if len(masked_cells) else 0
        one_by_one = (masked_cells[:, None] - 1 - torch.arange(min(self.steps, most), device=masked_cells.device)).clamp(min=0)
        if most <= self.steps:
            return one_by_one
        return torch.where((masked_cells <= self.steps)[:, None], one_by_one, masked_counts(masked_cells, self.steps, self.schedule))
