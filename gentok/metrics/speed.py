"""Speed as a ratio between contenders that do the same work, run in one process, in turn.

A B C A B C ...; the first round warms up and does not count. A ratio is taken within each round, so that a
machine that slows down slows both sides; a figure is the median of the rounds, with the least and the
greatest. Ratios travel from machine to machine better than seconds, which are given beside them. Nothing here
needs torch before it measures.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Contender", "Figures", "figure", "Measured", "interleaved", "machine", "missing", "table", "timed"]

Contender = Callable[[], float]
"""Runs once and returns its seconds."""
Figures = dict[str, dict[str, Any]]
"""Name of a figure -> its fields, all plain JSON."""
Measured = Iterator[tuple[str, dict[str, Any]]]
"""Figures one by one, each as soon as it is measured."""


def timed(work: Callable[..., Any], *args: Any, repeat: int = 1) -> Contender:
    """A contender.

    Args:
        work: is timed.
        args: its arguments.
        repeat: calls to average over, for work of less than some milliseconds.
    """

    def run() -> float:
        began = time.perf_counter()
        for _ in range(repeat):
            work(*args)
        return (time.perf_counter() - began) / repeat

    return run


def interleaved(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """The seconds of each contender in each of `rounds` rounds, A B A B ..., after one that does not
    count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            took = run()
            if number:
                seconds[name].append(took)
    return seconds


def figure(
    own: Sequence[float], other: Sequence[float], *, peer: str, tokens: int = 0, overhead: bool = False, share: bool = False, **about: Any
) -> dict[str, Any]:
    """One figure from the seconds of gentok and of its peer, round by round.

    Args:
        own, other: seconds of each round.
        peer: its name.
        tokens: drawn in one run of each.
        overhead: how many percent more time gentok takes, in place of how many times as fast as the peer it
            is.
        share: how many percent of its time the peer does without, in place of that.
        about: more fields.
    """
    values = [100 * (a / b - 1) if overhead else 100 * (1 - b / a) if share else b / a for a, b in zip(own, other, strict=True)]
    seconds, theirs = statistics.median(own), statistics.median(other)
    unit = "% more time" if overhead else "% of the time" if share else "times as fast"
    out = {"value": statistics.median(values), "min": min(values), "max": max(values), "unit": unit, "peer": peer}
    rates = {"tokens_per_second": tokens / seconds, "peer_tokens_per_second": tokens / theirs} if tokens else {}
    return {**out, "seconds": seconds, "peer_seconds": theirs, **rates, "rounds": len(own), **about}


def missing(peer: str, package: str) -> dict[str, Any]:
    """In place of a figure whose peer is not installed."""
    return {"value": None, "peer": peer, "note": f"not installed (pip install {package})"}


def machine() -> dict[str, Any]:
    """The CPU's model, its cores, and the versions of what is installed of gentok's peers and foundations."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("torch", "lightning", "vector-quantize-pytorch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)

    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.is_file() else []
    cpu = models[0].split(":", 1)[1].strip() if models else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions}


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per figure: value with the least and the greatest, seconds of both sides, the peer."""
    lines = [f"{'figure':<42}{'value':>8}{'min .. max':>20}  {'unit':<14}{'gentok s':>10}{'peer s':>10}  peer"]
    for name, f in figures.items():
        if f["value"] is None:
            lines.append(f"{name:<42}{'-':>8}{'':>20}  {'':<34}  {f['peer']}: {f['note']}")
            continue
        spread = f"{f['min']:.2f} .. {f['max']:.2f}"
        line = f"{name:<42}{f['value']:>8.2f}{spread:>20}  {f['unit']:<14}{f['seconds']:>10.4f}{f['peer_seconds']:>10.4f}  {f['peer']}"
        rates = f", {f['tokens_per_second']:,.0f} against {f['peer_tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in f else ""
        rates += f", {f['images_per_second']:,.0f} images/s" if "images_per_second" in f else ""
        lines.append(line + rates)
    return "\n".join(lines)
