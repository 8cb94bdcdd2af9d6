"""The report's page: one HTML text with its style, script and pictures inside; a policy in its head forbids it to load anything."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from gentok.build import component_name
from gentok.report.chart import Curve, chart, number
from gentok.report.run_folder import Run

__all__ = ["page"]

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
BOOK = re.compile(r"codebook/(train|held_out)_(usage|perplexity|dead|entropy|bits_per_item)(?:_(\d+))?")
SPEED = re.compile(r".*(_per_second|data_wait|wait_share|memory|seconds).*")
STEERING = ("lr", "gradient_norm")
NAMES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "si_sdr_db": "SI-SDR, dB",
    "mel_distance": "mel distance",
    "lr": "learning rate",
    "loss": "loss",
    "gradient_norm": "gradient norm before clipping",
    "held_out_bits_per_token": "bits per token",
    "held_out_bits_per_dimension": "bits per dimension",
    "codebook/usage": "rows in use",
    "codebook/perplexity": "perplexity of the codes",
    "codebook/dead": "dead rows",
    "codebook/entropy": "entropy of the codes, bits",
    "codebook/bits_per_item": "bits per item, by entropy",
}


def page(run: Run) -> str:
    """The whole page, as text."""
    sections = [
        ("curves", "Curves", _curves(run)),
        ("pictures", "Pictures over time", _pictures(run)),
        ("codebook", "Use of the codebook", _codebook(run)),
        ("throughput", "Throughput", _throughput(run)),
        ("parameters", "Parameters", _parameters(run)),
        ("skipped", "Skipped files", _skipped(run)),
        ("configuration", "Configuration", _configuration(run)),
        ("notes", "Notes", "".join(f"<p>{escape(note)}</p>" for note in run.notes)),
    ]
    sections = [s for s in sections if s[2]]
    title = escape(str(run.config.get("name") or run.folder.resolve().name))
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{name}</h2>{content}</section>' for key, name, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: training report</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><style>\n{(HERE / "page.css").read_text()}</style></head>\n'
        f'<body><header><h1>{title}</h1>{_lead(run)}{_facts(run)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{body}</main>\n<footer>Made by gentok from {escape(str(run.folder))}, {time.strftime('%Y-%m-%d %H:%M')}.</footer>\n"
        f"<script>\n{(HERE / 'page.js').read_text()}</script></body></html>\n"
    )


# ------------------------------------------------------------------------------------------------------------------- head


def _component(config: Any) -> str:
    return component_name(config)


def _lead(run: Run) -> str:
    config = run.config
    task = (config.get("task") or {}).get("name", "")
    tokenizer = config.get("tokenizer") or {}
    model = [_component(tokenizer), _component(tokenizer.get("codebook"))] if task == "tokenizer" else [_component(config.get("generator"))]
    words = [task, " with ".join(w for w in model if w), "on " + _component(config["data"]) if _component(config.get("data")) else ""]
    state = '<span class="state done">finished</span>' if run.result else '<span class="state">unfinished</span>'
    return f'<p class="lead">{escape(", ".join(w for w in words if w))} · {state}</p>'


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _facts(run: Run) -> str:
    wanted = run.config.get("steps")
    facts = [("Steps", f"{run.steps:,}" + (f" <small>of {wanted:,}</small>" if isinstance(wanted, int) else ""))]
    if run.result.get("seconds"):
        facts.append(("Training time", _duration(run.result["seconds"])))
    measures = [n for n in dict.fromkeys(("psnr", "si_sdr_db", "held_out_bits_per_token", *sorted(run.held_out))) if n in run.series]
    measures = [n for n in measures if not BOOK.fullmatch(n)][:3]
    facts += [(_title(n) + ", held out", number(run.series[n][-1][1])) for n in measures]
    for name in ("codebook/held_out_usage", "codebook/held_out_perplexity"):
        if name in run.series:
            facts.append((_title(name), number(run.series[name][-1][1], name.endswith("usage"))))
    speeds = [name for name in run.series if name.endswith("_per_second")]
    facts += [(_title(name), f"{_typical(run, name):,.0f}") for name in speeds[:1]]
    totals = {part: sum(n for key, n in run.sizes.items() if key.startswith(part)) for part in ("tokenizer", "generator")}
    facts += [(f"{part.capitalize()}, numbers", _short(total)) for part, total in totals.items() if total]
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    spec = _spec(run)
    command = run.result.get("command")
    return (
        f'<dl class="facts">{rows}</dl>'
        + (f'<p class="hint">Tokens: {escape(spec)}.</p>' if spec else "")
        + (f"<pre>{escape(command)}</pre>" if command else "")
    )


def _short(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def _spec(run: Run) -> str:
    try:
        from gentok.types import TokenSpec

        spec = TokenSpec.from_dict(run.bundle["tokenizer"]["spec"])
        return f"{spec.describe()}; {spec.bits:,.0f} bits per item"
    except (KeyError, TypeError, ValueError):
        return ""


def _typical(run: Run, name: str) -> float:
    values = sorted(v for _, v in run.series[name][1:] or run.series[name])
    return values[len(values) // 2]


# ----------------------------------------------------------------------------------------------------------------- charts


def _title(name: str) -> str:
    book = BOOK.fullmatch(name)
    name = f"codebook/{book[2]}" if book else name
    text = NAMES.get(name) or name.removeprefix("train/").replace("held_out_", "").replace("_", " ").replace("/", ", ")
    return text[:1].upper() + text[1:]


def _charts(run: Run, made: Iterable[tuple[str, list[Curve], dict[str, Any]]]) -> str:
    drawn = [
        chart(f"{re.sub('[^a-z0-9]+', '-', title.lower())}-{i}", title, lines, last_step=run.steps, **options)
        for i, (title, lines, options) in enumerate(made)
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _curves(run: Run) -> str:
    """What was learnt: the held-out measures, the loss and its terms, then what steered it."""
    names = [n for n in run.series if not BOOK.fullmatch(n) and not SPEED.fullmatch(n)]
    order = [n for n in names if n == "loss"] + [n for n in names if n in run.held_out]
    order += [n for n in names if n not in order and n not in STEERING] + [n for n in STEERING if n in names]
    made, used = [], set()
    for name in order:
        if name in used:
            continue
        side = "held_out" if name in run.held_out else "train"
        lines = [Curve("held out" if side == "held_out" else "train", run.series[name], side)]
        for other in (f"held_out_{name.removeprefix('train/')}", f"held_out/{name.removeprefix('train/')}"):
            if side == "train" and other in run.held_out:
                lines.append(Curve("held out", run.series[other], "held_out"))
                used.add(other)
        # a masked model's nll counts only what it had masked: no neighbour of the held-out bound
        if name == "held_out_bits_per_token" and "train/nll" in run.series and "train/masked" not in run.series:
            lines.insert(0, Curve("train", [(s, v / math.log(2)) for s, v in run.series["train/nll"]], "train"))
            used.add("train/nll")
        made.append((_title(name), lines, {"may_log": side == "train" and name != "lr", "zero": name == "lr"}))
    return _charts(run, made)


def _codebook(run: Run) -> str:
    """A chart per measure: both sides of a single level, or all levels on held-out items (on training items before a validation)."""
    found: dict[str, dict[tuple[str, int | None], str]] = {}
    for name in run.series:
        match = BOOK.fullmatch(name)
        if match:
            found.setdefault(match[2], {})[match[1], None if match[3] is None else int(match[3])] = name
    made = []
    for measure in [m for m in ("usage", "perplexity", "dead", "entropy", "bits_per_item") if m in found]:
        columns = found[measure]
        levels = sorted({k for _, k in columns if k is not None})
        options = {"percent": measure == "usage", "zero": measure in ("perplexity", "dead")}
        if not levels:
            lines = [Curve(s.replace("_", " "), run.series[columns[s, None]], s) for s in ("train", "held_out") if (s, None) in columns]
        else:
            side = "held_out" if ("held_out", levels[0]) in columns else "train"
            options["hint"] = f"{'held-out' if side == 'held_out' else 'training'} items, a line per level, coarse to fine"
            top = max(1, len(levels) - 1)
            lines = [Curve(f"level {k}", run.series[columns[side, k]], side, i / top) for i, k in enumerate(levels) if (side, k) in columns]
        made.append((_title(f"codebook/train_{measure}"), lines, options))
    return _charts(run, made)


def _throughput(run: Run) -> str:
    names = [n for n in run.series if SPEED.fullmatch(n) and not BOOK.fullmatch(n)]
    made = [(_title(n), [Curve("train", run.series[n], "train")], {"zero": True, "percent": n.endswith("share")}) for n in names]
    return _charts(run, made)


# ----------------------------------------------------------------------------------------------- pictures, sizes, settings


def _pictures(run: Run) -> str:
    out = []
    for kind, pictures in run.pictures.items():
        if not pictures:
            continue
        rows = []
        what = f"{kind.replace('_', ' ').capitalize()}, from the same seeds"
        if kind == "reconstructions":
            what = "Held-out items, and below each its reconstruction"
        for picture in reversed(pictures):
            small = f' class="small" style="max-width:min(100%,{2 * picture.width}px)"' if picture.width < 700 else ""
            rows.append(
                f'<figure><figcaption>step {picture.step:,}</figcaption><img{small} src="{picture.url}" width="{picture.width}" '
                f'height="{picture.height}" alt="{escape(what)}, at step {picture.step:,}"></figure>'
            )
        count = run.picture_counts[kind]
        some = f" Shown: {len(pictures)} of {count} steps." if count > len(pictures) else ""
        head = f'<h3>{escape(kind.replace("_", " ").capitalize())}</h3><p class="hint">{escape(what)}; the latest first.{some}</p>'
        out.append(f'<div class="card">{head}<div class="pictures">{"".join(rows)}</div></div>')
    return "".join(out)


def _parameters(run: Run) -> str:
    if not run.sizes:
        return ""
    most = max(run.sizes.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{count:,}</td>'
        f'<td class="share"><span style="width:{100 * count / most:.2f}%"></span></td></tr>'
        for name, count in sorted(run.sizes.items(), key=lambda item: (not item[0].startswith("generator"), -item[1]))
    )
    return (
        '<div class="card scroll"><table><thead><tr><th scope="col">part</th><th scope="col" class="number">stored numbers</th>'
        f'<th scope="col" class="share">share</th></tr></thead><tbody>{rows}</tbody></table>'
        '<p class="hint">Weights and buffers, codebooks that are moving averages among them.</p></div>'
    )


def _skipped(run: Run) -> str:
    """Items that could not be read, of each split; nothing where there were none."""
    out = []
    for split, found in (run.result.get("skipped") or {}).items():
        files = "".join(f"<li><code>{escape(str(name))}</code></li>" for name in found["files"])
        more = f", the first {len(found['files'])} of them" if found["count"] > len(found["files"]) else ""
        head = f"{found['count']:,} of {found['of']:,} items of {escape(split)} could not be read{more}"
        out.append(f'<div class="card scroll"><details><summary>{head}</summary><ul>{files}</ul></details></div>')
    return "".join(out)


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    plain = {k: v for k, v in run.config.items() if not isinstance(v, Mapping)}
    groups = "".join(_group(k, v) for k, v in run.config.items() if isinstance(v, Mapping))
    return f'<div class="card">{_group("run", plain)}{groups}</div>'


def _group(name: str, group: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(k))}</th><td><code>{escape(_value(v))}</code></td></tr>'
        for k, v in group.items()
        if not isinstance(v, Mapping)
    )
    nested = "".join(_group(str(k), v) for k, v in group.items() if isinstance(v, Mapping))
    component = _component(group)
    about = f"<span>{escape(component)}</span>" if component else ""
    return f"<details><summary>{escape(name)}{about}</summary>{f'<table>{rows}</table>' if rows else ''}{nested}</details>"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
