"""Which positions of an item are holes: drawn for training, or found where a sampler has something to fill in.

In training the number of holes is Poisson, clipped; their sizes are uniform, then their places. On a line they are
spans. On a raster they are boxes, whose height and width are uniform, or spans of the raster's order. A hole that
overlaps one drawn before it is left out. On a line the smallest span is what the codes of all levels span together.

What a sampler is to fill in has the same form: spans as long as they can be; boxes as wide as they can be, then as
high. A hole that reaches an item's last position goes on to the last one that there is, so that no model reads off
where an item ends that has not ended yet.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from gentok.rng import RowRNG
from gentok.types import Raster, Tokens, TokenSpec

__all__ = ["draw_holes", "find_holes"]


def draw_holes(tokens: Tokens, rate: float, most: int, boxes: bool, rng: RowRNG) -> Tensor:
    """Random holes.

    Args:
        tokens: codes int64 [B, K, N].
        rate: mean of the Poisson distribution of their number.
        most: what it is clipped to.
        boxes: on a raster, boxes in place of spans.
        rng: B rows of random numbers.

    Returns:
        int64 [B, N]: the number of each position's hole, in the order of their first positions; -1: none.
    """
    spec, device = tokens.spec, tokens.codes.device
    number = torch.arange(tokens.codes.shape[2], device=device)
    length = (tokens.present.any(1) * (number + 1)).amax(1)  # [B]
    terms = [math.exp(-rate) * rate**j / math.factorial(j) for j in range(most)]
    below = torch.tensor(list(itertools.accumulate(terms)), dtype=torch.float64, device=device)
    count = (rng.uniform()[:, None] > below).sum(1)
    if boxes and isinstance(spec.grid, Raster):
        height, width = (torch.full_like(length, side) for side in (spec.grid.h, spec.grid.w))
        covered = _spans(number // spec.grid.w, height, most, rng) & _spans(number % spec.grid.w, width, most, rng)
    else:
        unit = spec.frame_multiple
        covered = _spans(number // unit, (length + unit - 1) // unit, most, rng)  # [B, most, N]
    covered = covered & (number < length[:, None])[:, None]
    holes = torch.full_like(tokens.codes[:, 0], -1)
    for j in range(most):
        new = covered[:, j]
        kept = (j < count) & ~(new & (holes >= 0)).any(1)
        holes = torch.where(new & kept[:, None], j, holes)
    return _numbered(_to_the_end(holes, length), most)


def _spans(place: Tensor, length: Tensor, count: int, rng: RowRNG) -> Tensor:
    """bool [B, count, N]: where `place` int64 [N] lies in spans of [0, length), length int64 [B]; sizes are uniform, then beginnings."""
    u = rng.uniform(2, count)
    size = (u[:, 0] * length[:, None]).to(torch.int64) + 1
    start = (u[:, 1] * (length[:, None] - size + 1)).to(torch.int64)
    return (place >= start[..., None]) & (place < (start + size)[..., None])


def _to_the_end(holes: Tensor, length: Tensor) -> Tensor:
    """holes int64 [B, N] of items of `length` int64 [B]: what lies behind an item is of the hole that reaches its last position."""
    last = holes.gather(1, (length[:, None] - 1).clamp(min=0))
    return torch.where(torch.arange(holes.shape[1], device=holes.device) >= length[:, None], last, holes)


def _numbered(holes: Tensor, most: int) -> Tensor:
    """The same holes int64 [B, N] with the numbers 0, 1, ... in the order of their first positions."""
    inside = holes[:, None] == torch.arange(most, device=holes.device)[:, None]
    first = torch.where(inside.any(2), inside.to(torch.int64).argmax(2), holes.shape[1])
    rank = first.argsort(dim=1, stable=True).argsort(1)
    return torch.where(holes < 0, -1, rank.gather(1, holes.clamp(min=0)))


def find_holes(tokens: Tokens, boxes: bool) -> Tensor:
    """The holes of items that are to be completed.

    Args:
        tokens: codes int64 [B, K, N], UNKNOWN where they are to be drawn. A position with an UNKNOWN cell is of a
            hole.
        boxes: as in `draw_holes`.

    Returns:
        int64 [N]: the number of each position's hole, -1: none.

    Raises:
        ValueError: rows have different holes.
    """
    number = torch.arange(tokens.codes.shape[2], device=tokens.codes.device)
    masked, there = tokens.masked.any(1), (tokens.masked | tokens.present).any(1)
    whole = _to_the_end(masked.to(torch.int64), (there * (number + 1)).amax(1)) > 0
    rows = masked.any(1).nonzero()[:, 0]
    differ = (whole[rows] != whole[rows[:1]]).any(1)
    if bool(differ.any()):
        other = int(rows[differ][0])
        raise ValueError(
            f"this model fills the same holes in all rows of a batch; those of rows {int(rows[0])} and {other} differ: draw them one after "
            "the other"
        )
    missing = whole[rows[0]].tolist() if len(rows) else [False] * len(number)
    return torch.tensor(_box_numbers(missing, tokens.spec, boxes), device=tokens.codes.device)


def _box_numbers(missing: list[bool], spec: TokenSpec, boxes: bool) -> list[int]:
    """The number of each position's hole; positions are gone through in their order."""
    width = spec.grid.w if boxes and isinstance(spec.grid, Raster) else len(missing)
    out, count = [-1] * len(missing), 0
    above: dict[tuple[int, int], int] = {}  # (first, last column) -> number, of the row before
    for row in range(0, len(missing), width):
        here: dict[tuple[int, int], int] = {}
        for is_missing, run in itertools.groupby(range(width), key=lambda column: missing[row + column]):
            columns = list(run)
            if not is_missing:
                continue
            ends = columns[0], columns[-1]
            here[ends] = above.get(ends, count)
            count += ends not in above
            for column in columns:
                out[row + column] = here[ends]
        above = here
    return out
