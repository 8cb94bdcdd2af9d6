"""The report's page: one HTML text with its style, script, images and sounds inside.

A policy in its head forbids the page to load anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.build import component_name
from gentok.report.chart import BOTTOM, HEIGHT, TOP, WIDTH, number
from gentok.report.measures import charts, title
from gentok.report.run_folder import Run

__all__ = ["page"]

FIRST = ("psnr", "si_sdr_db", "held_out_bits_per_token")
"""Measures that come first in the head of the page."""


def page(run: Run) -> str:
    """The whole page, as text: page.html with what a run's folder holds."""
    import jinja2
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "component": component_name, "yaml": _yaml}
    drawn = charts(run)
    sections = {
        "curves": ("Curves", drawn["curves"]),
        "pictures": ("Images over time", [kind for kind in run.images if run.images[kind]]),
        "sounds": ("Sounds", list(run.sounds)),
        "codebook": ("Use of the codebook", drawn["codebook"]),
        "throughput": ("Throughput", drawn["throughput"]),
        "parameters": ("Parameters", sorted(run.sizes.items(), key=lambda part: (not part[0].startswith("generator"), -part[1]))),
        "skipped": ("Skipped files", list((run.result.get("skipped") or {}).items())),
        "configuration": ("Configuration", _groups(run.config)),
        "notes": ("Notes", run.notes),
    }
    return environment.get_template("page.html").render(
        run=run, title=str(run.config.get("name") or run.folder.resolve().name), about=_about(run.config), facts=_facts(run),
        spec=_spec(run), sections={key: section for key, section in sections.items() if section[1]},
        size={"width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        made=time.strftime("%Y-%m-%d %H:%M"), style=Markup((here / "page.css").read_text()), script=Markup((here / "page.js").read_text()),
    )  # fmt: skip


def _yaml(config: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration by its groups; "run": what stands in none."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    return ({"run": plain} if plain else {}) | {key: value for key, value in config.items() if isinstance(value, Mapping)}


def _about(config: Mapping[str, Any]) -> str:
    """What was trained on what, in one sentence."""
    task, tokenizer = (config.get("task") or {}).get("name", ""), config.get("tokenizer") or {}
    parts = [tokenizer, tokenizer.get("codebook")] if task == "tokenizer" else [config.get("generator")]
    model, data = " with ".join(filter(None, map(component_name, parts))), component_name(config.get("data"))
    return ", ".join(filter(None, [task, model, data and f"on {data}"]))


def _facts(run: Run) -> list[tuple[str, str]]:
    """The figures at the head of the page: (name, value)."""
    wanted = run.config.get("steps")
    facts = [("Steps", f"{run.steps:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else ""))]
    if run.result.get("seconds"):
        facts.append(("Training time", _duration(run.result["seconds"])))
    measures = [n for n in dict.fromkeys((*FIRST, *sorted(run.held_out))) if n in run.series and not n.startswith("codebook/")]
    facts += [(f"{title(n.removeprefix('held_out_'))}, held out", number(run.series[n][-1][1])) for n in measures[:3]]
    for measure in ("usage", "perplexity"):
        if points := run.series.get(f"codebook/held_out_{measure}"):
            facts.append((title(f"codebook/{measure}"), number(points[-1][1], measure == "usage")))
    for name in [name for name in run.series if name.endswith("_per_second")][:1]:
        facts.append((title(name), f"{statistics.median(v for _, v in run.series[name][1:] or run.series[name]):,.0f}"))
    for part in ("tokenizer", "generator"):
        if total := sum(count for key, count in run.sizes.items() if key.startswith(part)):
            facts.append((f"{part.capitalize()}, numbers", f"{total / 1e6:,.1f} M" if total >= 1e6 else f"{total:,}"))
    return facts


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
