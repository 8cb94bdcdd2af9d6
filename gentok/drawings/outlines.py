"""Outlines: filled shapes as commands on a grid of whole numbers, what an SVG icon is here.

An outline is a tuple of commands (kind, points): MOVE begins a part of a shape at its one point, LINE goes on to its point, CURVE by two
control points to its third (a cubic Bezier curve). SHAPE is a MOVE that begins a new shape, which is filled by itself; parts of one shape
are filled together, so that one can be a hole in another. Every part is closed: the line back to its beginning is not written.

Points are whole numbers (x, y) of 0..steps - 1 from the upper left, so that steps - 1 is the side of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.types import ABSENT, Ids, IdsSpec

__all__ = [
    "CURVE", "LINE", "MOVE", "POINTS", "SHAPE", "STEPS", "SYMBOLS", "Command", "Outline", "from_ids", "on_grid", "outline_spec", "packed",
    "rasterise", "shapes", "to_ids", "to_svg",
]  # fmt: skip

SHAPE, MOVE, LINE, CURVE = range(4)
POINTS = (1, 1, 1, 3)
"""Points of each kind of command."""
STEPS = 961
"""Steps of the grid of data: 40 in a unit of the usual canvas of 24."""
SYMBOLS = ("shape", "move", "line", "curve", *map(str, range(STEPS)))
"""Of outlines as ids: a command, then x and y of each of its points."""

Command = tuple[int, tuple[tuple[int, int], ...]]
Outline = tuple[Command, ...]


def shapes(outline: Outline) -> list[list[list[Command]]]:
    """The commands of every part of every shape. What stands before the first move is left out."""
    out: list[list[list[Command]]] = []
    for command in outline:
        if command[0] == SHAPE or (command[0] == MOVE and not out):
            out.append([[command]])
        elif command[0] == MOVE:
            out[-1].append([command])
        elif out:
            out[-1][-1].append(command)
    return out


def on_grid(outline: Outline, steps: int, of: int = STEPS) -> Outline:
    """An outline on a coarser grid, without what has no extent there.

    Points go to the nearest one of the grid. Left out are lines and curves that stay where they are, a last line back to the part's
    beginning (it is closed anyway), and parts of less than two lines or a curve. An outline that this has made is not changed again.

    Args:
        outline: on a grid of `of` steps.
        steps: of the grid, at least 2.
        of: of the grid that it is on.
    """

    def moved(point: tuple[int, int]) -> tuple[int, int]:
        x, y = ((2 * value * (steps - 1) + of - 1) // (2 * (of - 1)) for value in point)
        return x, y

    out: list[Command] = []
    for shape in shapes(outline):
        kept = [part for part in (_part([(kind, tuple(map(moved, points))) for kind, points in part]) for part in shape) if part]
        for i, part in enumerate(kept):
            out += [(SHAPE if i == 0 else MOVE, part[0][1]), *part[1:]]
    return tuple(out)


def _part(part: list[Command]) -> list[Command]:
    """A part without commands of no extent; [] where nothing is left."""
    start = at = part[0][1][0]
    out = part[:1]
    for kind, points in part[1:]:
        if any(point != at for point in points):
            out.append((kind, points))
            at = points[-1]
    while out[-1][0] == LINE and out[-1][1][0] == start:
        del out[-1]
    return out if len(out) > 2 or out[-1][0] == CURVE else []


def to_ids(outline: Outline) -> list[int]:
    """An outline on the grid of STEPS -> numbers of SYMBOLS."""
    return [i for kind, points in outline for i in (kind, *(4 + value for point in points for value in point))]


def from_ids(ids: Sequence[int]) -> Outline:
    """The inverse of `to_ids`; ids below 0 at the end are none. Raises ValueError where they are no outline."""
    ids = [i for i in ids if i >= 0]
    out: list[Command] = []
    at = 0
    while at < len(ids):
        kind = ids[at]
        values = [i - 4 for i in ids[at + 1 : at + 1 + 2 * POINTS[kind]]] if kind < 4 else []
        if kind >= 4 or len(values) != 2 * POINTS[kind] or not all(0 <= value < STEPS for value in values):
            raise ValueError(f"an outline is of commands, each with x and y of its points in 0..{STEPS - 1}; that ends at its id {at}")
        out.append((kind, tuple(zip(values[::2], values[1::2]))))
        at += 1 + len(values)
    return tuple(out)


def outline_spec(longest: int) -> IdsSpec:
    """What outlines of up to `longest` ids are as a part of a condition."""
    return IdsSpec(SYMBOLS, longest)


def packed(rows: Sequence[Sequence[int]], longest: int) -> Ids:
    """Rows of ids -> Ids int64 [B, longest], ABSENT behind each."""
    ids = torch.full((len(rows), longest), ABSENT, dtype=torch.int64)
    for row, values in zip(ids, rows):
        row[: len(values)] = torch.tensor(values, dtype=torch.int64)
    return Ids(ids)


def to_svg(outline: Outline, steps: int, title: str = "") -> str:
    """An SVG document, whose canvas is steps - 1 units wide; a path for every shape."""
    from xml.sax.saxutils import escape

    letters, lines = "MMLC", []
    for shape in shapes(outline):
        parts = [
            "".join(letters[kind] + " ".join(f"{x} {y}" for x, y in points) for kind, points in part) + "Z" for part in shape
        ]
        lines.append(f'<path d="{"".join(parts)}"/>')
    named = f"<title>{escape(title)}</title>" if title else ""
    side = steps - 1
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{named}{"".join(lines)}</svg>\n'


def rasterise(outlines: Sequence[Outline], steps: int, size: int) -> Tensor:
    """Pictures of outlines, as matplotlib's Agg fills them (what overlaps in the same direction is full: SVG's rule nonzero).

    Args:
        outlines: on a grid of `steps`.
        steps: of the grid.
        size: pixels per side.

    Returns:
        uint8 [B, 1, size, size]: black on white.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    codes = {SHAPE: [Path.MOVETO], MOVE: [Path.MOVETO], LINE: [Path.LINETO], CURVE: [Path.CURVE4] * 3}
    out = np.zeros((len(outlines), 1, size, size), dtype=np.uint8)
    renderer: Any = RendererAgg(size, size, 72)
    context = renderer.new_gc()
    context.set_linewidth(0)
    context.set_snap(False)
    where = Affine2D().scale(size / (steps - 1), -size / (steps - 1)).translate(0, size)  # Agg counts rows from below
    for picture, outline in zip(out, outlines):
        renderer.clear()
        for shape in shapes(outline):
            points, kinds = [], []
            for part in shape:
                for kind, given in part:
                    points += given
                    kinds += codes[kind]
                points.append(part[0][1][0])
                kinds.append(Path.CLOSEPOLY)
            path = Path(np.array(points, dtype=float), kinds)
            path.should_simplify = False
            renderer.draw_path(context, path, where, (0.0, 0.0, 0.0))
        picture[0] = 255 - np.asarray(renderer.buffer_rgba())[..., 3]
    return torch.from_numpy(out)
