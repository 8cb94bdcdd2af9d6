"""Holes at the end: the order in which a causal model fills what is missing in an item, given what stands on both
sides (CM3's causal masking: Aghajanyan et al., arXiv 2201.07520; IconShop's: Wu et al., arXiv 2304.14400).

    an item         a b c d e f g h                     c d and g are holes
    its order       a b <0> e f <1> h | <0> c d | <1> g

In a hole's place stands its sentinel <i>, and what is in it comes behind all that is kept, after the same sentinel
again. Sentinels are fed and never predicted. A hole is a set of whole positions, of all levels. Kept positions and
each hole are blocks of their own, and the cells of a block have the layout's order among themselves (level_major,
delayed, ...), so that with any layout every kept cell comes before every cell of a hole: the order of a block is made
of whole frames, and only then delayed.

Deviation: a sentinel is one step; of layouts with several slots, it fills the slots of a frame in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.layouts import Layout
from gentok.types import ABSENT

__all__ = ["HolesLast", "StepMaps", "arrange", "most_steps"]

_SIDE_BY_SIDE = ("delayed", "parallel")
"""Layouts whose steps hold a cell of every level."""


@dataclass(frozen=True)
class StepMaps:
    """The steps of every row, as index maps.

    Attributes:
        level: int64 [B, S, G], of each slot's cell; -1 where it holds none, in sentinels, and in the steps that fill
            up shorter rows.
        position: int64 [B, S, G], likewise; a sentinel <i> is -2 - i.
        place: int64 [B, S], the position where a step stands: that of its first cell, of a sentinel the first one of
            its hole.
        step: int64 [B, K, N], where a cell is; anything for a cell that the spec does not have.
    """

    level: Tensor
    position: Tensor
    place: Tensor
    step: Tensor


def most_steps(layout: Layout, holes: int) -> int:
    """Steps of an item with so many holes, at most."""
    delay = layout.spec.levels - 1 if layout.name == "delayed" else 0
    return layout.steps + holes * (2 + delay)


def arrange(holes: Tensor, layout: Layout, steps: int | None = None) -> StepMaps:
    """The order of items with holes.

    Args:
        holes: int64 [B, N], the number of the hole that each position lies in, -1 where it is kept; a row's holes
            have the numbers 0, 1, ...
        layout: of the plain order, one of gentok.layouts.LAYOUTS.
        steps: how many steps every row has; None: those of the longest.
    """
    spec, device, (batch, positions) = layout.spec, holes.device, holes.shape
    levels, side_by_side = spec.levels, layout.name in _SIDE_BY_SIDE
    number = torch.arange(int(holes.max()) + 1 if holes.numel() else 0, device=device)
    inside = holes[:, None] == number[:, None]  # [B, M, N]
    there, first = inside.any(2), inside.to(torch.int64).argmax(2)
    # What is put in order: the positions, the sentinels in the place of holes, and those in front of them.
    sentinel, own = (-2 - number).expand(batch, -1), torch.arange(positions, device=device).expand(batch, -1)
    element, place = torch.cat((own, sentinel, sentinel), 1), torch.cat((own, first, first), 1)
    last = len(number) + 1  # of sentinels of holes that a row does not have
    block = torch.cat((holes + 1, torch.where(there, 0, last), torch.where(there, number + 1, last)), 1)
    within = torch.cat((own, first, torch.full_like(first, -1)), 1)
    rank = (block * (positions + 1) + within + 1).argsort(1).argsort(1)[:, None]  # [B, 1, E]
    exists = spec.exists().to(device).expand(batch, -1, -1)
    marks = there[:, None].repeat(1, levels, 2)
    if not side_by_side:
        marks[:, 1:] = False
    exists = torch.cat((exists, marks), 2)  # [B, K, E]
    # A number for every cell that rises in the order; then the steps without anything are left out.
    level = torch.arange(levels, device=device)[:, None]
    if layout.name == "delayed":
        key = rank + block[:, None] * (levels - 1) + level
    elif layout.name == "parallel":
        key = rank.expand(-1, levels, -1)
    elif layout.name == "level_major":
        key = (block[:, None] * levels + level) * rank.shape[2] + rank
    else:
        key = rank * levels + level
    row, k, e = exists.nonzero(as_tuple=True)
    used = torch.zeros(batch, int(key.max()) + 1, dtype=torch.int64, device=device)
    used[row, key[row, k, e]] = 1
    step = (used.cumsum(1) - 1).gather(1, key.flatten(1)).view_as(key)
    shape = batch, int(used.sum(1).max()) if steps is None else steps, layout.slots
    at = row, step[row, k, e], k if side_by_side else torch.zeros_like(k)
    level_of, position_of, stands = (torch.full(shape, ABSENT, device=device) for _ in range(3))
    level_of[at] = torch.where(element[row, e] < 0, ABSENT, k)
    position_of[at], stands[at] = element[row, e], place[row, e]
    chosen = ((level_of >= 0) * 2 + (position_of < ABSENT).to(torch.int64)).argmax(2, keepdim=True)
    return StepMaps(level_of, position_of, stands.gather(2, chosen)[..., 0].clamp(min=0), step[:, :, :positions])


class HolesLast(Layout):
    """The order of items with the same holes, as a layout. Sentinels are steps, or slots, without a cell.

    Args:
        holes: int64 [N], as in `arrange`.
        layout: the plain order.
    """

    def __init__(self, holes: Tensor, layout: Layout):
        maps = arrange(holes[None].cpu(), layout)
        spec, exists = layout.spec, layout.spec.exists()
        self.name, self.spec = layout.name, spec
        self.level, self.position, self._place = maps.level[0], maps.position[0], maps.place[0]
        self.step = torch.where(exists, maps.step[0], ABSENT)
        self.slot = torch.where(exists, layout.slot, ABSENT)
        self.vocab = torch.tensor((*spec.vocab_sizes, 0))[self.level]

    @property
    def standing(self) -> tuple[Tensor, Tensor]:
        """As Layout.standing; a sentinel stands at the first position of its hole."""
        return super().standing[0].clamp(min=0), self._place
