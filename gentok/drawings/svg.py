"""SVG files as outlines: fontTools reads their shapes and paths; arcs and quadratic curves become cubic ones.

Read are the filled shapes of a file: paths, rectangles, circles, ellipses, lines, polygons. Left out is what is not drawn by itself (defs,
clip paths, masks, ...) or is not filled (fill="none"). Colours, strokes, opacity, style sheets and fill rules are not looked at: every
shape is black, and filled by the rule nonzero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentok.drawings.outlines import CURVE, LINE, MOVE, SHAPE, STEPS, Command, Outline, on_grid

__all__ = ["SVG_SUFFIXES", "read_svg"]

SVG_SUFFIXES = (".svg",)
_LARGEST = 1 << 20
_NOT_DRAWN = ("defs", "clipPath", "mask", "symbol", "marker", "pattern", "linearGradient", "radialGradient", "filter", "metadata")
_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, AssertionError, RuntimeError)
"""What fontTools and the parser of XML raise; SyntaxError: what is no XML; RuntimeError: too deep, or not implemented."""


def read_svg(source: str | Path | bytes, name: str = "") -> Outline:
    """The filled shapes of a file, fitted into the canvas: the view box is scaled until its longer side fits, and centred.

    Args:
        source: the file's path or its bytes.
        name: what errors call the file; by default its path.

    Returns:
        The outline on the grid of gentok.drawings.outlines.STEPS; what lies outside of the canvas is moved to its border.

    Raises:
        ValueError: it cannot be read, or nothing in it is filled; a line that says why.
        OSError: there is no such file.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the file")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if len(data) > _LARGEST:
        raise ValueError(f"{name} cannot be read as an icon: it has {len(data):,} bytes, more than {_LARGEST:,}")
    try:
        outline = on_grid(_outline(data), STEPS)
    except _ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an icon: {reason}") from None
    if not outline:
        raise ValueError(f"{name} cannot be read as an icon: nothing in it is filled")
    return outline


def _outline(data: bytes) -> Outline:
    from fontTools.misc.transform import Transform
    from fontTools.pens.transformPen import TransformPen
    from fontTools.svgLib.path import SVGPath, parse_path
    from fontTools.svgLib.path.shapes import PathBuilder

    encoding = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)", data)
    if b"\0" in data or (encoding and encoding[1].lower() not in (b"utf-8", b"us-ascii")):
        raise ValueError("its encoding is another than UTF-8")  # in which the next line could not see what it looks for
    if b"<!ENTITY" in data:
        raise ValueError("it defines entities")
    root = SVGPath.fromstring(data).root
    if _tag(root) != "svg":
        raise ValueError(f"its root is <{_tag(root)}>, and <svg> is expected")
    x, y, width, height = _view_box(root)
    side = max(width, height)
    fit = Transform().scale((STEPS - 1) / side).translate((side - width) / 2 - x, (side - height) / 2 - y)
    builder = PathBuilder()
    for element in _drawn(root, filled=True):
        builder.add_path_from_element(element)
    pen = _pen()
    for path, own in zip(builder.paths, builder.transforms):
        pen.commands.append((SHAPE, ()))
        parse_path(path, TransformPen(pen, fit.transform(own) if own else fit))
    return tuple(_whole(pen.commands))


def _view_box(root: Any) -> tuple[float, float, float, float]:
    given = root.attrib.get("viewBox")
    if given is not None:
        box = [float(value) for value in given.replace(",", " ").split()]
    elif "width" in root.attrib and "height" in root.attrib:
        box = [0.0, 0.0, *(float(root.attrib[side].removesuffix("px")) for side in ("width", "height"))]
    else:
        raise ValueError("it has neither a viewBox nor a width and height")
    if len(box) != 4 or not all(map(math.isfinite, box)) or not min(box[2:]) > 0:
        raise ValueError(f"its view box is {given or box}, and x, y and a width and height above 0 are expected")
    return box[0], box[1], box[2], box[3]


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _drawn(element: Any, filled: bool) -> Iterator[Any]:
    """The elements that are drawn and filled, in their order."""
    if not isinstance(element.tag, str) or _tag(element) in _NOT_DRAWN:  # comments have a function in its place
        return
    style = dict(entry.split(":", 1) for entry in element.attrib.get("style", "").replace(" ", "").split(";") if ":" in entry)
    fill, display = (style.get(key, element.attrib.get(key)) for key in ("fill", "display"))
    if display == "none":
        return
    filled = filled if fill is None else fill != "none"
    if _tag(element) in ("g", "svg", "a"):
        if "transform" in element.attrib:
            raise ValueError(f"a <{_tag(element)}> has a transform, which is read of single shapes alone")
    elif filled:
        yield element
    for child in element:
        yield from _drawn(child, filled)


def _pen() -> Any:
    from fontTools.pens.basePen import BasePen

    class Pen(BasePen):
        """Takes down what is drawn; BasePen makes cubic curves of quadratic ones."""

        def __init__(self) -> None:
            super().__init__(None)
            self.commands: list[tuple[int, tuple[tuple[float, float], ...]]] = []

        def _moveTo(self, pt: tuple[float, float]) -> None:
            self.commands.append((MOVE, (pt,)))

        def _lineTo(self, pt: tuple[float, float]) -> None:
            self.commands.append((LINE, (pt,)))

        def _curveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float], pt3: tuple[float, float]) -> None:
            self.commands.append((CURVE, (pt1, pt2, pt3)))

    return Pen()


def _whole(commands: list[tuple[int, tuple[tuple[float, float], ...]]]) -> Iterator[Command]:
    """The commands with points on the grid; the first move behind a mark of a new shape begins that shape."""
    new = True
    for kind, points in commands:
        if kind == SHAPE:
            new = True
            continue
        if not all(math.isfinite(value) for point in points for value in point):
            raise ValueError("a coordinate is no finite number")
        on = tuple((_step(x), _step(y)) for x, y in points)
        yield (SHAPE if new and kind == MOVE else kind), on
        new = new and kind != MOVE


def _step(value: float) -> int:
    return min(max(round(value), 0), STEPS - 1)
