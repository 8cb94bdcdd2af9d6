"""Halton order: cells are revealed in an order that spreads evenly over the image, whatever the network says.

Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", arXiv 2503.17076. The positions of
a raster are ordered by the 2-D Halton sequence (radical inverses in base 2 for the row and 3 for the column,
from index 1), each cell where a point first falls into it. Cells that are revealed together then lie far
apart, and depend little on each other. Step i of T leaves floor(n gamma(i / T)) of a row's n cells masked,
gamma = arccos as in the released code, and a row of no more than T masked cells fills one per step; ids are
drawn from their distributions, without confidence.

An approximation as far as several cells are drawn in a step. The order does not look at ids, so with one cell
per step (steps >= masked cells) nothing is lost where the conditionals agree: then it is exact.

Choices: a roll moves the order by a random shift around the edges, drawn per row, so that not every image
starts at the same cell. Lines and frames use the radical inverse in base 2; a pyramid is ordered scale by
scale, coarse first. The levels of a position follow each other, coarse first. Each row counts its own masked
cells.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import rank_in_row
from gentok.samplers.base import setting
from gentok.samplers.stepwise import SCHEDULES, masked_counts
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import PositiveInt
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
    """All cells (row, column) of an h x w grid in the order in which the Halton sequence first falls into
    them."""
    points: dict[tuple[int, int], None] = {}
    index = 0
    while len(points) < h * w:
        index += 1
        points.setdefault((int(radical_inverse(index, 2) * h), int(radical_inverse(index, 3) * w)))
    return tuple(points)


def _blocks(spec: TokenSpec) -> list[tuple[int, int, int]]:
    """(first position, height, width) of each scale; a line is one row high."""
    if isinstance(spec.grid, Raster):
        return [(0, spec.grid.h, spec.grid.w)]
    if isinstance(spec.grid, Pyramid):
        sides = spec.grid.sides
        return [(sum(s * s for s in sides[:i]), side, side) for i, side in enumerate(sides)]
    return [(0, spec.positions, 1)]  # base 2 for the only axis that there is


def _place_of_positions(spec: TokenSpec, shift: Tensor) -> Tensor:
    """shift float64 [B, 2] in [0, 1) -> int64 [B, N]: the place of each position in each row's order."""
    out = torch.empty(len(shift), spec.positions, dtype=torch.int64, device=shift.device)
    for first, h, w in _blocks(spec):
        size = torch.tensor([h, w], device=shift.device)
        points = torch.tensor(halton_points(h, w), device=shift.device)
        moved = (points + (shift[:, None] * size).long()) % size
        at = first + moved[..., 0] * w + moved[..., 1]
        out.scatter_(1, at, (first + torch.arange(h * w, device=shift.device)).expand(len(shift), -1))
    return out


@dataclass(frozen=True)
class Halton(UnmaskingSampler, id="sampler/halton"):
    """Unmasking in an order that spreads over the grid.

    Args:
        steps: network calls at most; one cell per step where a row has no more masked cells than steps.
        schedule: of the share that is still masked, one of samplers/stepwise.py.
        roll: every row's order is moved by a random shift.
    """

    steps: PositiveInt = 32
    schedule: str = setting("arccos", choices=SCHEDULES)
    roll: bool = True

    def unmask(self, state: UnmaskingState) -> None:
        rng, spec = state.rng, state.spec
        counts = self._counts(state.n_free)
        shift = rng.uniform(2) if self.roll else torch.zeros(rng.batch, 2, dtype=torch.float64, device=rng.device)
        levels = torch.arange(spec.levels, device=shift.device)
        place = _place_of_positions(spec, shift)[:, None] * spec.levels + levels[:, None]
        # The rank of every free cell among those of its row; what was known comes last.
        rank = rank_in_row(place.masked_fill(~state.free, spec.levels * spec.positions))
        left = state.n_free
        for i in range(counts.shape[1]):
            rows = (left > 0).nonzero()[:, 0]
            if not len(rows):
                break
            done, upto = (state.n_free - left)[rows], (state.n_free - counts[:, i])[rows]
            cells = (rank[rows] >= done[:, None, None]) & (rank[rows] < upto[:, None, None])
            state.reveal(rows, state.predict(rows), cells)
            left = counts[:, i]
            state.report(i + 1, counts.shape[1])

    def _counts(self, n_masked: Tensor) -> Tensor:
        """int64 [B, calls]: cells that are masked after each call, of rows with so many at the start."""
        most = int(n_masked.max()) if len(n_masked) else 0
        one_by_one = (n_masked[:, None] - 1 - torch.arange(min(self.steps, most), device=n_masked.device)).clamp(min=0)
        if most <= self.steps:
            return one_by_one
        return torch.where((n_masked <= self.steps)[:, None], one_by_one, masked_counts(n_masked, self.steps, self.schedule))
