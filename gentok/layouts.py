"""Emission orders as data: in which order a causal generator emits the cells of a [K, N] grid of codes.

A layout is S steps x G slots, each slot a (level, position) cell or nothing. Slots of one step are emitted
together. The idea is audiocraft's codebook pattern (Copet et al., "Simple and Controllable Music Generation",
arXiv 2306.05284, section 2.2), written as two index tensors, so that orders are checked once and need no
network to be tested.

    raster           N steps of 1 slot; K = 1 only: the order of the grid
    level_major      all positions of level 0, then of level 1, ...                (coarse first)
    position_major   all levels of position 0, then of position 1, ...             ("flattened")
    delayed          step s, slot k holds level k at position s - k                (MusicGen; S = N + K - 1)
    parallel         step n holds all levels of position n                         (G = K)
    auto             raster where K = 1, position_major elsewhere

Every cell that the spec has occurs exactly once, and unflatten(flatten(codes)) == codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentok.types import ABSENT, TokenSpec

__all__ = ["Layout", "LAYOUTS"]

Cell = tuple[int, int]


def _raster(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    if levels != 1:
        raise ValueError(
            f"the raster layout orders one level, these tokens have {levels}: choose one of "
            f"{', '.join(name for name in LAYOUTS if name != 'raster')}"
        )
    return [[(0, n)] for n in range(positions)]


def _level_major(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    return [[(k, n)] for k in range(levels) for n in range(0, positions, strides[k])]


def _position_major(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    return [[(k, n)] for n in range(positions) for k in range(levels) if n % strides[k] == 0]


def _delayed(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    return [[(k, s - k) for k in range(levels)] for s in range(positions + levels - 1)]


def _parallel(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    return [[(k, n) for k in range(levels)] for n in range(positions)]


def _auto(levels: int, positions: int, strides: tuple[int, ...]) -> list[list[Cell]]:
    return (_raster if levels == 1 else _position_major)(levels, positions, strides)


LAYOUTS: dict[str, Callable[[int, int, tuple[int, ...]], list[list[Cell]]]] = {
    "auto": _auto,
    "raster": _raster,
    "level_major": _level_major,
    "position_major": _position_major,
    "delayed": _delayed,
    "parallel": _parallel,
}


class Layout:
    """S steps x G slots over the cells of a TokenSpec.

    Args:
        cells: for each step its (level, position) pairs; pairs outside of the spec become empty slots, empty
            steps vanish.
        spec: the tokens.
        name: for messages.

    Attributes:
        level, position: int64 [S, G], the cell of a slot, ABSENT (-1) in slots that hold none.
        step, slot: int64 [K, N], where a cell is emitted, ABSENT for a cell that the spec does not have.
        vocab: int64 [S, G], how many ids the slot's level has (0 where there is no cell).

    Raises:
        ValueError: a cell of the spec does not occur exactly once.
    """

    def __init__(self, cells: list[list[Cell]], spec: TokenSpec, name: str = "custom"):
        exists = spec.exists()
        levels, positions = exists.shape

        def valid(k: int, n: int) -> bool:
            return 0 <= k < levels and 0 <= n < positions and bool(exists[k, n])

        steps = [step for step in cells if any(valid(*cell) for cell in step)]
        slots = max(len(step) for step in steps)
        self.name, self.spec = name, spec
        self.level = torch.full((len(steps), slots), ABSENT, dtype=torch.int64)
        self.position = self.level.clone()
        self.step = torch.full((levels, positions), ABSENT, dtype=torch.int64)
        self.slot = self.step.clone()
        for s, step in enumerate(steps):
            for g, (k, n) in enumerate(step):
                if not valid(k, n):
                    continue
                if self.step[k, n] >= 0:
                    raise ValueError(f"layout {name!r} emits level {k}, position {n} twice (steps {int(self.step[k, n])} and {s})")
                self.level[s, g], self.position[s, g] = k, n
                self.step[k, n], self.slot[k, n] = s, g
        missing = (exists & (self.step < 0)).nonzero()
        if len(missing):
            raise ValueError(f"layout {name!r} never emits level {int(missing[0, 0])}, position {int(missing[0, 1])}")
        sizes = torch.tensor((*spec.vocab_sizes, 0))
        self.vocab = sizes[self.level]  # level -1 picks the trailing 0

    @classmethod
    def of(cls, name: str, spec: TokenSpec) -> Layout:
        """One of LAYOUTS by name. Raises ValueError with the names on an unknown one."""
        if name not in LAYOUTS:
            raise ValueError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUTS)}")
        return cls(LAYOUTS[name](spec.levels, spec.positions, spec.strides or (1,) * spec.levels), spec, name)

    @property
    def steps(self) -> int:
        """S."""
        return self.level.shape[0]

    @property
    def slots(self) -> int:
        """G."""
        return self.level.shape[1]

    @property
    def exists(self) -> Tensor:
        """bool [S, G]: slots that hold a cell."""
        return self.level >= 0

    @property
    def standing(self) -> tuple[Tensor, Tensor]:
        """Level and position, int64 [S] each, of the cell that stands for a step: its first slot that holds one."""
        chosen = self.exists.to(torch.int64).argmax(1, keepdim=True)
        return self.level.gather(1, chosen)[:, 0], self.position.gather(1, chosen)[:, 0]

    def flatten(self, codes: Tensor) -> Tensor:
        """codes [B, K, N] of any dtype -> [B, S, G]; ABSENT in slots without a cell."""
        level, position = self.level.to(codes.device), self.position.to(codes.device)
        out = codes[:, level.clamp(min=0), position.clamp(min=0)]
        return torch.where(level >= 0, out, torch.full_like(out, ABSENT))

    def unflatten(self, ids: Tensor) -> Tensor:
        """ids [B, S, G] -> codes [B, K, N]; ABSENT in cells that the spec does not have."""
        step, slot = self.step.to(ids.device), self.slot.to(ids.device)
        out = ids[:, step.clamp(min=0), slot.clamp(min=0)]
        return torch.where(step >= 0, out, torch.full_like(out, ABSENT))

    def prefix(self, masked_cells: Tensor) -> Tensor:
        """bool [B, K, N] -> int64 [B]: the first step that emits a masked cell, S where there is none."""
        per_step = self.flatten(masked_cells.to(torch.int64)).eq(1).any(2)
        first = per_step.to(torch.int64).argmax(1)
        return torch.where(per_step.any(1), first, torch.full_like(first, self.steps))
