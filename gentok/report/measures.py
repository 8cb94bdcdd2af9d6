"""From the columns of metrics.csv to charts: a measure's two sides share a chart, and so do its levels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gentok.report.chart import Chart, Curve, chart
from gentok.report.run_folder import Run

__all__ = ["charts", "title"]

Columns = dict[tuple[str, "int | None"], Sequence[tuple[int, float]]]
"""(side, level) -> points. side: "train" or "held_out"; level: of the codebook, None without levels."""

LEVEL = re.compile(r"(codebook/.+)_(\d+)|(.+)_level(\d+)")
SPEED = re.compile(r".*(_per_second|data_wait|wait_share|memory|seconds).*")
STEERING = ("lr", "gradient_norm")
SHARES = ("codebook/usage", "data_wait", "transcripts_right")
TITLES = {
    "lr": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "bits_per_token": "bits per token",
    "nll": "NLL, nats per token",
    "data_wait": "share of the time spent waiting for data",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "si_sdr_db": "SI-SDR, dB",
    "codebook/usage": "rows in use",
    "codebook/perplexity": "perplexity of the codes",
    "codebook/dead": "dead rows",
    "codebook/entropy": "entropy of the codes, bits",
    "codebook/bits_per_item": "bits per item, by entropy",
}
"""Measure -> title; the charts of the codebook are shown in this order."""
WORDS = {"db": "dB", "nll": "NLL", "kl": "KL", "l1": "L1", "l2": "L2", "stft": "STFT", "psnr": "PSNR", "ssim": "SSIM"}


def title(measure: str) -> str:
    """The measure's title, or its name in words."""
    text = TITLES.get(measure) or ", ".join(" ".join(WORDS.get(w, w) for w in part.split("_")) for part in measure.split("/"))
    return text[:1].upper() + text[1:]


def charts(run: Run) -> dict[str, list[Chart]]:
    """The charts of a run.

    Returns:
        "curves": loss, held-out measures, terms of the loss, learning rate and gradient norm; "codebook": its
        use; "throughput": speeds.
    """
    found = _measures(run)
    learnt = [m for m in found if m not in STEERING and not m.startswith("codebook/") and not SPEED.fullmatch(m)]
    learnt.sort(key=lambda m: (m != "loss", all(side == "train" for side, _ in found[m])))
    sections = {
        "curves": [*learnt, *(m for m in STEERING if m in found)],
        "codebook": [m for m in TITLES if m in found and m.startswith("codebook/")],
        "throughput": [m for m in found if SPEED.fullmatch(m)],
    }
    return {section: [_chart(run, section, measure, found[measure]) for measure in chosen] for section, chosen in sections.items()}


def _measures(run: Run) -> dict[str, Columns]:
    """Measure -> its columns; names without side and level."""
    found: dict[str, Columns] = {}
    for column, points in run.series.items():
        match = LEVEL.fullmatch(column)
        name, level = (match[1] or match[3], int(match[2] or match[4])) if match else (column, None)
        side = "held_out" if column in run.held_out else "train"
        found.setdefault(re.sub(r"(?<![a-z])(train|held_out)[/_]", "", name), {})[side, level] = points
    # a masked model's nll counts only what was masked: not comparable with the held-out bound
    if "bits_per_token" in found and ("train", None) in found.get("nll", {}) and "masked" not in found:
        found["bits_per_token"]["train", None] = [(step, nats / math.log(2)) for step, nats in found["nll"].pop(("train", None))]
    return {measure: columns for measure, columns in found.items() if columns}


def _chart(run: Run, section: str, measure: str, columns: Columns) -> Chart:
    levels = sorted({level for _, level in columns if level is not None})
    if levels:
        side = "held_out" if ("held_out", levels[0]) in columns else "train"
        hint = f"{'held-out' if side == 'held_out' else 'training'} items, a curve per level, coarse to fine"
        curves = [Curve("all levels", columns.get((side, None), ()))]
        for k in levels:
            color = f"color-mix(in oklab, var(--coarse), var(--fine) {100 * k / max(1, levels[-1]):.0f}%)"
            curves.append(Curve(f"level {k}", columns.get((side, k), ()), color))
    else:
        train, held_out = (columns.get((side, None), ()) for side in ("train", "held_out"))
        curves, hint = [Curve("train", train, noisy=True), Curve("held out", held_out, "var(--held-out)")], ""
    return chart(
        title(measure), curves, name=f"{section}-{re.sub('[^a-z0-9]', '-', measure.lower())}", percent=measure in SHARES,
        zero=section == "throughput" or measure in ("lr", "codebook/perplexity", "codebook/dead"),
        may_log=section == "curves" and measure != "lr" and not any(side == "held_out" for side, _ in columns),
        last_step=run.steps, hint=hint,
    )  # fmt: skip
