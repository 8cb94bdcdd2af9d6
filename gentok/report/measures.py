"""From the columns of metrics.csv to charts: a measure's two sides share a chart, and so do its levels and all runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from gentok.report.chart import Chart, Curve, chart
from gentok.report.run_folder import Run

__all__ = ["Columns", "better", "charts", "measures", "run_color", "title"]

Columns = dict[tuple[str, "int | None"], Sequence[tuple[int, float]]]
"""(side, level) -> points. side: "train" or "held_out"; level: of the codebook, None without levels."""

LEVEL = re.compile(r"(codebook/.+)_(\d+)|(.+)_level(\d+)")
SPEED = re.compile(r".*(_per_second|data_wait|wait_share|memory|seconds).*")
STEERING = ("lr", "gradient_norm")
TITLES = {
    "lr": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "bits_per_token": "bits per token",
    "nll": "NLL, nats per token",
    "data_wait": "time spent waiting for data, %",
    "transcripts_right": "transcripts right, %",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "si_sdr_db": "SI-SDR, dB",
    "codebook/usage": "codebook usage, %",
    "codebook/perplexity": "codebook perplexity",
    "codebook/dead": "dead codes",
    "codebook/entropy": "codebook entropy, bits",
    "codebook/bits_per_item": "bits per item, by entropy",
}
"""Measure -> title; the charts of the codebook are shown in this order. Shares, which end in %, are logged as 0..1."""
BETTER = (
    (
        "higher",
        r"psnr|ssim|si_sdr_db|pesq|stoi|codebook/(usage|perplexity|entropy)|.*(right|accuracy|precision|recall)|ids_given_back|.*_per_second|mfu",
    ),
    (
        "lower",
        r"loss|nll|bits_per_token|l1|l2|kl|stft|mel.*|perceptual|.*distance|fd.*|kid.*|codebook/dead|data_wait|.*wait_share|.*memory.*|wer|cer",
    ),
)
"""Which direction of a measure is better, where that can be said: it cannot of a learning rate, or of discriminators' losses."""
WORDS = {"db": "dB", "nll": "NLL", "kl": "KL", "l1": "L1", "l2": "L2", "stft": "STFT", "psnr": "PSNR", "ssim": "SSIM"}


def title(measure: str) -> str:
    """The measure's title, or its name in words."""
    text = TITLES.get(measure) or ", ".join(" ".join(WORDS.get(w, w) for w in part.split("_")) for part in measure.split("/"))
    return text[:1].upper() + text[1:]


def better(measure: str) -> str:
    """"higher" or "lower", whichever is better; "" where neither is."""
    return next((direction for direction, names in BETTER if re.fullmatch(names, measure)), "")


def charts(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """The charts of one run, or of several in the same charts.

    Returns:
        "curves": loss, held-out measures, terms of the loss, learning rate and gradient norm; "codebook": its
        use; "throughput": speeds.
    """
    found: dict[str, dict[str, Columns]] = {}
    for run in runs:
        for measure, columns in measures(run).items():
            found.setdefault(measure, {})[run.name] = columns
    learnt = [m for m in found if m not in STEERING and not m.startswith("codebook/") and not SPEED.fullmatch(m)]
    learnt.sort(key=lambda m: (m != "loss", not _held_out(found[m])))
    sections = {
        "curves": [*learnt, *(m for m in STEERING if m in found)],
        "codebook": [m for m in TITLES if m in found and m.startswith("codebook/")],
        "throughput": [m for m in found if SPEED.fullmatch(m)],
    }
    names, last_step = [run.name for run in runs], max((run.steps for run in runs), default=0)
    return {section: [_chart(section, m, found[m], names, last_step) for m in chosen] for section, chosen in sections.items()}


def measures(run: Run) -> dict[str, Columns]:
    """Measure -> its columns; names without side and level, shares in percent."""
    found: dict[str, Columns] = {}
    for column, points in run.series.items():
        match = LEVEL.fullmatch(column)
        name, level = (match[1] or match[3], int(match[2] or match[4])) if match else (column, None)
        side = "held_out" if column in run.held_out else "train"
        measure = re.sub(r"(?<![a-z])(train|held_out)[/_]", "", name)
        share = TITLES.get(measure, "").endswith("%")
        found.setdefault(measure, {})[side, level] = [(step, 100 * value) for step, value in points] if share else points
    # a masked model's nll counts only what was masked: not comparable with the held-out bound
    if "bits_per_token" in found and ("train", None) in found.get("nll", {}) and "masked" not in found:
        found["bits_per_token"]["train", None] = [(step, nats / math.log(2)) for step, nats in found["nll"].pop(("train", None))]
    return {measure: columns for measure, columns in found.items() if columns}


def run_color(i: int) -> str:
    """The colour of run i of several, as a CSS value."""
    return f"oklch(62% 0.15 {(250 + 137.5 * i) % 360:.0f})"


def _held_out(by_run: Mapping[str, Columns]) -> bool:
    return any(side == "held_out" for columns in by_run.values() for side, _ in columns)


def _curves(by_run: Mapping[str, Columns], names: Sequence[str], noisy: bool) -> tuple[list[Curve], str]:
    """The curves of a measure, and the line below them. A single run's sides, or its levels, differ in colour; several runs do, and the
    sides or levels of each in shade."""
    keys = {key: None for columns in by_run.values() for key in columns}
    levels = sorted({level for _, level in keys if level is not None})
    sides = [side for side in ("train", "held_out") if any(s == side and (level is not None) == bool(levels) for s, level in keys)]
    sides, several = sides[-1:] if levels else sides, len(names) > 1
    curves = []
    for run, columns in by_run.items():
        every = ["all levels"] * any(level is not None for _, level in columns)
        for side, level in itertools.product(sides, (None, *levels)):
            shade = 100 * (level or 0) / max(1, levels[-1]) if levels else 100 * (several and sides.index(side) < len(sides) - 1)
            words = [run] * several + (every if level is None else [f"level {level}"])
            words += [side.replace("_", " ")] * (not levels and not (several and len(sides) == 1))
            if several:
                color = f"color-mix(in oklab, {run_color(names.index(run))}, var(--card) {0.6 * shade:.0f}%)"
            elif level is not None:
                color = f"color-mix(in oklab, var(--coarse), var(--fine) {shade:.0f}%)"
            else:
                color = "var(--held-out)" if side == "held_out" and not levels else "var(--train)"
            curves.append(Curve(", ".join(words), columns.get((side, level), ()), color, noisy and side == "train" and not levels))
    hints = ["held-out items" if sides == ["held_out"] else "training items"] * (bool(levels) or several and sides == ["held_out"])
    return curves, ", ".join(hints + ["a curve per level, coarse to fine"] * bool(levels))


def _chart(section: str, measure: str, by_run: Mapping[str, Columns], names: Sequence[str], last_step: int) -> Chart:
    curves, hint = _curves(by_run, names, measure != "lr")
    direction = better(measure)
    hint = ", ".join(filter(None, [direction and f"{direction} is better", hint]))
    return chart(
        title(measure), curves, name=f"{section}-{re.sub('[^a-z0-9]', '-', measure.lower())}", percent=title(measure).endswith("%"),
        zero=section == "throughput" or measure in ("lr", "codebook/perplexity", "codebook/dead"),
        may_log=section == "curves" and measure != "lr" and not _held_out(by_run), last_step=last_step, hint=hint,
    )  # fmt: skip
