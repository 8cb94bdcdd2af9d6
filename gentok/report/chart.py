"""A line chart as inline SVG: readable axes, a legend with the last values, and points that the page's script shows under the pointer.

Colours are CSS classes (side-train, side-held_out) or, for codebook levels, a ramp from coarse to fine by the variable --t; so one drawing
serves light and dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "chart", "number"]

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 34
MOST = 240
"""Points drawn of a line; of more, the lowest and the highest of every stretch."""
LOG_FROM = 30.0
"""A positive curve whose highest value is this many times its lowest is drawn on a logarithmic axis, where the caller allows it."""


@dataclass(frozen=True)
class Curve:
    """side: "train" or "held_out"; level: its place 0..1 between the coarsest and the finest codebook level, None without levels."""

    label: str
    points: Sequence[tuple[int, float]]
    side: str = "train"
    level: float | None = None

    def look(self, role: str = "") -> str:
        """The attributes that colour an element of this line; role: a class beside."""
        if self.level is not None:
            return f'class="{role} level" style="--t:{self.level:.3f}"'
        return f'class="{role} side-{self.side}"'


def number(value: float, percent: bool = False) -> str:
    """Four figures, with thousands separated: 0.03629, 21.71, 1,204, 96.3 %."""
    if percent:
        return f"{100 * value:.3g} %"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
        return text.replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _nice(low: float, high: float, count: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` of them."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-6 * size else size or 1.0  # what is flat to six figures is a flat line
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [m * 10.0**p for p in range(first, last + 1) for m in ((1, 2, 5) if last - first <= 2 else (1,))]
    inside = [v for v in every if low * 0.999 <= v <= high * 1.001]
    below, above = [v for v in every if v < low * 0.999][-1:], [v for v in every if v > high * 1.001][:1]
    return below + inside + above


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about MOST points: of every stretch the lowest and the highest value, in order, and the two ends."""
    if len(points) <= MOST:
        return list(points)
    size = math.ceil(2 * len(points) / (MOST - 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean over about a twenty-fifth of the curve."""
    half = max(1, len(points) // 50)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    out = []
    for i, (x, _) in enumerate(points):
        a, b = max(0, i - half), min(len(points), i + half + 1)
        out.append((x, (sums[b] - sums[a]) / (b - a)))
    return out


def chart(
    name: str,
    title: str,
    lines: Sequence[Curve],
    *,
    percent: bool = False,
    zero: bool = False,
    may_log: bool = False,
    last_step: int = 0,
    hint: str = "",
) -> str:
    """A <figure>. name: unique in the page; percent: values 0..1 shown as 0..100 %; zero: the axis begins at 0; hint: a line below."""
    lines = [line for line in lines if line.points]
    values = [v for line in lines for _, v in line.points]
    low, high = min(values), max(values)
    log = may_log and low > 0 and high / low >= LOG_FROM
    if percent:
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    elif log:
        ticks = _decades(low, high)
    else:
        ticks = _nice(min(0.0, low) if zero else low, high, 4)
    bottom, top = min(ticks), max(ticks)
    end = max(last_step, max(x for line in lines for x, _ in line.points))
    steps = [v for v in _nice(0, end, 5) if v <= end and v == int(v)]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(end, 1)

    def y(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if log else (value - bottom) / (top - bottom)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = []
    for tick in ticks:
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at}" dy="0.32em" text-anchor="end">{number(tick, percent)}</text>')
    for step in steps:
        parts.append(f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(step)}</text>')
    corner = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end"'
    parts.append(f'<text class="axis" {corner}>steps{", values on a logarithmic scale" if log else ""}</text>')

    data = []
    for line in lines:
        points = thin(line.points)
        noisy = len(line.points) > 60 and line.side == "train" and line.level is None
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
        parts.append(f'<polyline {line.look("raw" if noisy else "line")} points="{path}"/>')
        if noisy:
            mean = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in thin(smooth(line.points)))
            parts.append(f'<polyline {line.look("line")} points="{mean}"/>')
        if len(points) <= (40 if line.level is None else 12):
            dots = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.4"/>' for s, v in points)
            parts.append(f"<g {line.look('dots')}>{dots}</g>")
        shown = [[round(x(s), 1), round(y(v), 1), number(s), number(v, percent)] for s, v in points]
        data.append({"label": line.label, "side": line.side, "t": line.level, "points": shown})
    summary = "; ".join(
        f"{line.label} from {number(line.points[0][1], percent)} at step {number(line.points[0][0])} "
        f"to {number(line.points[-1][1], percent)} at step {number(line.points[-1][0])}"
        for line in lines
    )
    some = lines if len(lines) <= 4 else [lines[0], lines[-1]]
    legend = "".join(f"<li {line.look()}><i></i>{escape(line.label)} <b>{number(line.points[-1][1], percent)}</b></li>" for line in some)
    payload = escape(json.dumps(data, separators=(",", ":")), quote=True)
    return (
        f'<figure class="chart" data-lines="{payload}"><figcaption><h3>{escape(title)}</h3><ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(summary)}</desc>{"".join(parts)}'
        f'<g class="cursor" visibility="hidden"><line y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></g></svg>'
        f'<div class="tip" role="status" hidden></div>{f"<p class=hint>{escape(hint)}</p>" if hint else ""}</figure>'
    )
