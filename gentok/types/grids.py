"""Where an item's tokens lie: on a raster, along a line or time, or in scales."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat

from gentok.types.formats import Size

__all__ = ["Raster", "Line", "Frames", "Pyramid", "Grid", "GRIDS"]


@dataclass(frozen=True)
class Raster:
    """An image's tokens, row by row: position n is (n // w, n % w)."""

    h: Size
    w: Size

    @property
    def positions(self) -> int:
        return self.h * self.w


@dataclass(frozen=True)
class Line:
    """An ordered list of n tokens (None: any number) without a place; `nested` when every prefix is a code (FlexTok yes, TiTok no)."""

    n: Size | None
    nested: bool = False

    @property
    def positions(self) -> int | None:
        return self.n


@dataclass(frozen=True)
class Frames:
    """Tokens along time, `rate_hz` per second. `n` is the number of frames of the longest item, None where unbounded."""

    rate_hz: PositiveFloat
    n: Size | None = None

    @property
    def positions(self) -> int | None:
        return self.n


@dataclass(frozen=True)
class Pyramid:
    """Square scales, coarse to fine: position n lies in scale s where sum(sides[:s]²) <= n (VAR, TokenFlow)."""

    sides: tuple[Size, ...]

    @property
    def positions(self) -> int:
        return sum(side * side for side in self.sides)


Grid = Raster | Line | Frames | Pyramid
GRIDS = {"raster": Raster, "line": Line, "frames": Frames, "pyramid": Pyramid}
