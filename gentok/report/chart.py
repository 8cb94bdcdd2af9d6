"""A line chart as SVG that stands inside the page: drawn by matplotlib, coloured by the page.

matplotlib draws with one colour code for each CSS value, and the codes in its text are then replaced by the
values, so that one drawing serves light and dark. The points go along as data, with their places in the
drawing: the page's script shows those under the pointer.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Chart", "Curve", "chart", "number"]

WIDTH, HEIGHT = 480, 220
RIGHT, TOP, BOTTOM = 20, 10, 36
MOST = 240
"""Points drawn of a curve, fewer where more than two share a chart; of more, the lowest and the highest of every stretch."""
LOG_FROM = 30.0
"""Values whose highest is this many times their lowest get a logarithmic axis, where the caller allows it."""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        label: its name in the legend.
        points: (step, value), sorted by step.
        color: a CSS value.
        noisy: whether a long curve is drawn thin, with its running mean over it.
    """

    label: str
    points: Sequence[tuple[int, float]]
    color: str = "var(--train)"
    noisy: bool = False

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: unique in the page; the prefix of all ids in `svg`.
        title: the heading.
        curves: what was drawn.
        svg: the elements inside an <svg> of WIDTH x HEIGHT.
        summary: first and last values in words.
        data: JSON of [{label, color, points: [[x, y, step, value], ...]}], with x and y in the drawing.
        hint: a line below; "": none.
    """

    name: str
    title: str
    curves: Sequence[Curve]
    svg: str
    summary: str
    data: str
    hint: str


def number(value: float, decimals: int | None = None) -> str:
    """With `decimals`, or with four figures: 0.00002, 0.03629, 21.71, 1,204; very small and very large ones as 1.12×10⁻⁹."""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif -7 < exponent < 9:
        text = f"{value:,.{max(0, 3 - exponent)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, power = f"{value:.2e}".partition("e")
        text = f"{float(mantissa):g}×{_power(int(power))}"
    return text.replace("-", "\N{MINUS SIGN}")


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def thin(points: Sequence[tuple[int, float]], most: int = MOST) -> list[tuple[int, float]]:
    """At most about `most` points: the lowest and the highest value of every stretch, in order, and the two
    ends."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // (most - 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean over about a twenty-fifth of the curve."""
    import numpy as np

    steps, values = zip(*points)
    total, count = (np.convolve(part, np.ones(2 * max(1, len(points) // 50) + 1), "same") for part in (values, np.ones(len(points))))
    return list(zip(steps, (total / count).tolist()))


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    name: str = "chart",
    percent: bool = False,
    zero: bool = False,
    may_log: bool = False,
    last_step: int = 0,
    hint: str = "",
) -> Chart:
    """Draws curves over steps.

    Args:
        title: the heading.
        curves: at least one of them with points; those without are left out.
        name: unique in the page.
        percent: the axis runs from 0 to 100.
        zero: the axis begins at 0.
        may_log: the axis is logarithmic where the values span a factor of LOG_FROM.
        last_step: where the axis ends, at the least.
        hint: a line below the drawing.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if curve.points]
    colors = {"#010000": "var(--soft)", "#020000": "var(--rule)"} | {f"#03{i:04x}": curve.color for i, curve in enumerate(curves)}
    codes, drawing, data = list(colors), io.StringIO(), []
    most = max(40, 2 * MOST // max(2, len(curves)))
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans", "font.size": 11, "text.color": codes[0],
        "axes.spines.left": False, "axes.spines.bottom": False, "axes.spines.right": False, "axes.spines.top": False,
        "axes.labelcolor": codes[0], "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": codes[1],
        "xtick.bottom": False, "xtick.labelcolor": codes[0], "ytick.left": False, "ytick.labelcolor": codes[0], "ytick.minor.left": False,
        "lines.linewidth": 1.8, "lines.markersize": 4.5,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure((WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((0, 0, 1, 1))
        scale = _scale(axes, [value for curve in curves for _, value in curve.points], percent, zero, may_log)
        left = 14 + 7 * max(4, *map(len, axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks())))
        axes.set_position((left / WIDTH, BOTTOM / HEIGHT, 1 - (left + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT))
        end = max(last_step, 1, *(curve.points[-1][0] for curve in curves))
        axes.set_xlim(0, end)
        axes.set_xticks([step for step in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, end) if step <= end])
        axes.xaxis.set_major_formatter(lambda step, _: number(step))
        axes.set_xlabel(f"steps{scale}", loc="right", labelpad=1)
        for i, (curve, code) in enumerate(zip(curves, codes[2:])):
            points, noisy = thin(curve.points, most), curve.noisy and len(curve.points) > 60
            marker = "o" if len(points) <= (40 if len(curves) <= 2 else 12) else None
            look = {"linewidth": 1, "alpha": 0.35} if noisy else {"marker": marker}
            axes.plot(*zip(*points), color=code, clip_on=False, gid=f"curve-{i}", **look)
            if noisy:
                axes.plot(*zip(*thin(smooth(curve.points), most)), color=code, clip_on=False, gid=f"mean-{i}")
            places = axes.transData.transform(points)
            shown = [[round(x, 1), round(HEIGHT - y, 1), f"{s:,}", number(v)] for (x, y), (s, v) in zip(places.tolist(), points)]
            data.append({"label": curve.label, "color": curve.color, "points": shown})
        plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawing, format="svg", transparent=True, metadata=plain)
    summary = "; ".join(
        f"{curve.label} from {number(curve.points[0][1])} at step {curve.points[0][0]:,} "
        f"to {number(curve.last)} at step {curve.points[-1][0]:,}"
        for curve in curves
    )
    return Chart(name, title, curves, _inner(drawing.getvalue(), name, colors), summary, json.dumps(data), hint)


def _scale(axes: Any, values: Sequence[float], percent: bool, zero: bool, may_log: bool) -> str:
    """Sets range and ticks of the axis of values. Returns what is special about it, in words."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if may_log and low > 0 and high / low >= LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        return ", values on a logarithmic scale"
    low = min(0.0, low) if zero else low
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # what is flat to six figures is a flat line
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    ticks = [0, 25, 50, 75, 100] if percent else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    exponent = math.floor(math.log10(max(map(abs, ticks))))
    unit = 10.0**exponent if not -7 < exponent < 9 else 1.0
    step = (ticks[1] - ticks[0]) / unit  # as many decimals as tell the ticks apart
    decimals = next(d for d in range(20) if math.isclose(round(step, d), step, rel_tol=1e-3))
    axes.yaxis.set_major_formatter(lambda value, _: number(0.0 if abs(value / unit) < step / 2 else value / unit, decimals))
    return "" if unit == 1 else f", values in units of {_power(exponent)}"


def _inner(text: str, name: str, colors: Mapping[str, str]) -> str:
    """The elements inside matplotlib's <svg>, without its style sheet, with unique ids and the page's
    colours."""
    text = text[text.index('<g id="figure_1"') : text.rindex("</svg>")]
    text = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    return re.sub("#0[123][0-9a-f]{4}", lambda code: colors[code[0]], text)
