"""The plot of quality against rate that compares tokenizers of sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw_rates"]

MEASURES = ("si_sdr_db", "mel_distance", "pesq", "word_error_rate", "digit_accuracy")


def draw_rates(report: Mapping[str, Any], path: Path) -> None:
    """Draws a panel for every measure, against kbit per second, with a curve for each tokenizer.

    Args:
        report: of suite=audio_tokenizers.
        path: the image file that is written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [name for name in MEASURES if any(name in row for row in report["rows"].values())]
    figure, every = plt.subplots(1, len(measured), figsize=(4.4 * len(measured), 3.8), squeeze=False)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, row in report["rows"].items():
        if "kbit_per_second" in row:
            curves.setdefault(name.partition(", first ")[0], []).append(row)
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for axes, measure in zip(every[0], measured):
        for i, (name, rows) in enumerate(curves.items()):
            label = Path(name).parent.name if Path(name).name == "bundle" else Path(name).name
            look = {"color": colors[i % len(colors)], "marker": "os^vDP*X"[i // len(colors) % 8]}  # another marker where colours begin anew
            points = sorted((row["kbit_per_second"], row[measure]) for row in rows if measure in row)
            if points:
                axes.plot(*zip(*points), **look, ms=4, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("kbit per second")
        axes.set_title(measure.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    if curves:  # beside the axes: it would lie on the curves
        every[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
