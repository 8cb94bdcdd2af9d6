"""The report's page: one HTML text with its style, script, images and sounds inside.

A policy in its head forbids the page to load anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gentok.build import component_name
from gentok.report.chart import BOTTOM, HEIGHT, TOP, WIDTH, number
from gentok.report.measures import Columns, better, charts, measures, run_color, title
from gentok.report.run_folder import Run

__all__ = ["page"]

FIRST = ("psnr", "si_sdr_db", "bits_per_token")
"""Measures that come first in the head of the page."""


def page(runs: Sequence[Run]) -> str:
    """The whole page, as text: page.html with what the folders of one or several runs hold."""
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "component": component_name, "yaml": _yaml}
    environment.globals["run_color"] = run_color
    drawn, several = charts(runs), len(runs) > 1
    parts = _columns([run.sizes for run in runs])
    parts.sort(key=lambda row: (not row[0].startswith("generator"), -max(n or 0 for n in row[1])))
    settings = _columns([dict(_flat(run.config)) for run in runs])
    sections = {
        "sweep": ("Sweep", _sweep(runs)),
        "differences": ("What differs in the configuration", [row for row in settings if len(set(map(str, row[1]))) > 1]),
        "curves": ("Curves", drawn["curves"]),
        "pictures": ("Images over time", [kind for kind, _ in _columns([run.images for run in runs])]),
        "sounds": ("Sounds", [kind for kind, _ in _columns([run.sounds for run in runs])]),
        "codebook": ("Use of the codebook", drawn["codebook"]),
        "throughput": ("Throughput", drawn["throughput"]),
        "parameters": ("Parameters and buffers", [(name, [n and f"{n:,}" for n in counts]) for name, counts in parts]),
        "skipped": ("Skipped files", [(run, *item) for run in runs for item in (run.result.get("skipped") or {}).items()]),
        "configuration": ("Configuration", {} if several else _groups(runs[0].config)),
        "notes": ("Notes", [f"{run.name}: {note}" if several else note for run in runs for note in run.notes]),
    }  # fmt: skip
    heading = " and ".join(run.name for run in runs) if several else str(runs[0].config.get("name") or runs[0].folder.resolve().name)
    return environment.get_template("page.html").render(
        runs=runs, several=several, title=heading, abouts=[_about(run.config) for run in runs], specs=[_spec(run) for run in runs],
        facts=_columns([_facts(run) for run in runs]), sections={key: section for key, section in sections.items() if section[1]},
        size={"width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        made=time.strftime("%Y-%m-%d %H:%M"), style=Markup((here / "page.css").read_text()), script=Markup((here / "page.js").read_text()),
    )  # fmt: skip


def _sweep(runs: Sequence[Run]) -> dict[str, Any]:
    """What was varied in a sweep, and what came out: heads, and a row of (text, whether it is the best) per run; {} without a sweep."""
    keys = {key: None for run in runs for key in run.overrides}
    varied = [key for key in keys if len({run.overrides.get(key) for run in runs if run.overrides}) > 1]
    if not varied:
        return {}
    found = [{m: value for m, columns in measures(run).items() if (value := _last(columns)) is not None} for run in runs]
    names = {m: None for m in (*FIRST, *(name for figures in found for name in figures)) if any(m in figures for figures in found)}
    shown = [m for m in names if not m.startswith("codebook/")][:6] + [m for m in ("codebook/usage",) if m in names]
    best = {m: (max if better(m) == "higher" else min)(figures[m] for figures in found if m in figures) for m in shown if better(m)}
    rows = []
    for run, figures in zip(runs, found):
        cells = [(run.overrides.get(key, "–"), False) for key in varied]
        cells += [(number(figures[m]), figures[m] == best.get(m)) if m in figures else ("–", False) for m in shown]
        rows.append((run, cells))
    heads = ["run", *varied, *(f"{title(m)}{f', {better(m)} is better' if better(m) else ''}" for m in shown)]
    return {"heads": heads, "rows": rows}


def _columns(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Several tables side by side: (key, the value of each, None where one has none)."""
    return [(key, [table.get(key) for table in tables]) for key in dict.fromkeys(key for table in tables for key in table)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Its values by dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else value


def _yaml(config: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration by its groups; "run": what stands in none."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    return ({"run": plain} if plain else {}) | {key: value for key, value in config.items() if isinstance(value, Mapping)}


def _about(config: Mapping[str, Any]) -> str:
    """What was trained on what, in one sentence."""
    groups = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    task, tokenizer = groups.get("task", {}).get("name", ""), groups.get("tokenizer", {})
    parts = [tokenizer, tokenizer.get("codebook")] if task == "tokenizer" else [groups.get("generator")]
    model, data = " with ".join(filter(None, map(component_name, parts))), component_name(groups.get("data"))
    return ", ".join(filter(None, [str(task), model, data and f"on {data}"]))


def _facts(run: Run) -> dict[str, str]:
    """The figures at the head of the page."""
    wanted, found = run.config.get("steps"), measures(run)
    facts = {"Steps": f"{run.steps:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else "")}
    if run.result.get("seconds"):
        facts["Training time"] = _duration(run.result["seconds"])
    held_out = {m: value for m in dict.fromkeys((*FIRST, *found)) if m in found and (value := _last(found[m])) is not None}
    shown = [m for m in held_out if not m.startswith("codebook/")][:3]
    for measure in [*shown, *(m for m in ("codebook/usage", "codebook/perplexity") if m in held_out)]:
        mean = ", mean of the levels" if ("held_out", None) not in found[measure] else ""
        facts[f"{title(measure)}, held out{mean}"] = number(held_out[measure])
    for name in [name for name in run.series if name.endswith("_per_second")][:1]:
        facts[title(name)] = f"{statistics.median(v for _, v in run.series[name][1:] or run.series[name]):,.0f}"
    for part in ("tokenizer", "generator"):
        if total := sum(count for key, count in run.sizes.items() if key.startswith(part)):
            facts[f"{part.capitalize()} parameters"] = f"{total / 1e6:,.1f} M" if total >= 1e6 else f"{total:,}"
    return facts


def _last(columns: Columns) -> float | None:
    """The last value of a measure on held-out items, of its levels the mean."""
    last = {level: points[-1][1] for (side, level), points in columns.items() if side == "held_out" and points}
    return last[None] if None in last else statistics.mean(last.values()) if last else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _spec(run: Run) -> str:
    from gentok.types import TokenSpec

    try:
        spec = TokenSpec.from_dict(run.bundle["tokenizer"]["spec"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f"{spec.describe()}; {spec.bits:,.0f} bits per item"
