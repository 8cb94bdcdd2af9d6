"""What a causal transformer over a layout looks up: which rows of a table its fed steps read, and where the cells of a
level are.

A table has the codes of all levels, a filler per level (an absent code), `begin`, what an empty slot reads, and
behind these a row for each sentinel (generators/hole_order.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.layouts import Layout
from gentok.types import ABSENT, TokenSpec

__all__ = ["LevelCells", "cells_of_levels", "fed_rows"]


def _as_slice(values: list[int]) -> slice | Tensor:
    """Indices as a slice where they are evenly spaced, so that taking them copies nothing."""
    step = values[1] - values[0] if len(values) > 1 else 1
    if step > 0 and values == list(range(values[0], values[0] + step * len(values), step)):
        return slice(values[0], values[-1] + 1, step)
    return torch.tensor(values, device="cpu")


@dataclass(frozen=True)
class LevelCells:
    """The cells of one level in the order of their steps: where they are emitted, where they lie, and the
    rows of their codes."""

    steps: slice | Tensor
    positions: slice | Tensor
    vocab: slice


def cells_of_levels(layout: Layout) -> list[LevelCells]:
    """The cells of every level of a layout."""
    out, start = [], 0
    for k, size in enumerate(layout.spec.vocab_sizes):
        positions = (layout.step[k] >= 0).nonzero()[:, 0]
        out.append(LevelCells(_as_slice(layout.step[k, positions].tolist()), _as_slice(positions.tolist()), slice(start, start + size)))
        start += size
    return out


def fed_rows(level: Tensor, position: Tensor, spec: TokenSpec) -> tuple[Tensor, Tensor]:
    """The rows that fed steps read. Fed step i holds what layout step i - 1 emitted, fed step 0 `begin`.

    Args:
        level: int64 [..., S, G], of the slots of all layout steps.
        position: int64 [..., S, G], below -1 in sentinels.
        spec: the tokens.

    Returns:
        offset and absent, int64 [..., S, G]: an id's row is id + offset, a slot without a code reads `absent`.
    """
    codes = sum(spec.vocab_sizes)
    begin, empty = codes + spec.levels, codes + spec.levels + 1
    starts = torch.tensor([sum(spec.vocab_sizes[:k]) for k in range(spec.levels)], device=level.device)
    source, held = level[..., :-1, :], position[..., :-1, :]
    offset = torch.where(source >= 0, starts[source.clamp(min=0)], 0)
    absent = torch.where(source >= 0, codes + source, torch.where(held < ABSENT, empty - 1 - held, empty))
    first = torch.full_like(level[..., :1, :], empty)
    first[..., 0] = begin
    return torch.cat((first - spec.vocab, offset), -2), torch.cat((first, absent), -2)
