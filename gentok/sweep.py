"""The table of a sweep: `python train.py -m seed=0,1 optimizer.lr=1e-3,3e-3 ...` runs every combination in a folder of its own.

SWEEP/0, SWEEP/1, ...   run folders; each has job.json: its overrides, and how it ended
SWEEP/summary.csv       a row per job: what was varied, how it ended, the last value of every measure
SWEEP/summary.md        the same as a table to read, without the measures of single levels

`python -m gentok.sweep SWEEP` makes the table anew, also of a sweep that still runs or was stopped.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["note", "summarize", "main"]

JOB = "job.json"


def note(folder: Path, overrides: Sequence[str], state: str, error: str | None = None) -> None:
    """Writes folder/job.json. overrides: "key=value" as on the command line; state: "running", "done", "failed" or "stopped"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps({"overrides": list(overrides), "state": state, "error": error}, indent=1) + "\n")


def summarize(sweep: Path) -> str:
    """Writes summary.csv and summary.md into the sweep's folder and returns the latter's text. Raises OSError where there is no job."""
    folders = sorted((p.parent for p in Path(sweep).glob(f"*/{JOB}")), key=lambda p: (len(p.name), p.name))
    if not folders:
        raise FileNotFoundError(f"there is no sweep in {sweep}: expected folders with {JOB}, as `python train.py -m ...` makes them")
    jobs = [_read(folder) for folder in folders]
    values = [dict(word.split("=", 1) for word in job["overrides"]) for job in jobs]
    keys = list(dict.fromkeys(k for row in values for k in row))
    varied = [k for k in keys if len({row.get(k) for row in values}) > 1]
    measures = list(dict.fromkeys(k for job in jobs for k in job["metrics"]))
    rows = [
        {"job": job["job"], **{k: row.get(k, "") for k in varied}, "state": job["state"], "steps": job["steps"], "seconds": job["seconds"]}
        | {k: job["metrics"].get(k, "") for k in measures}
        | {"error": job["error"]}
        for job, row in zip(jobs, values)
    ]
    with open(Path(sweep) / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    shown = [k for k in rows[0] if not re.search(r"_\d+$", k) and any(row[k] != "" for row in rows)]
    same = " ".join(f"{k}={values[0][k]}" for k in keys if k not in varied)
    text = f"# Sweep of {len(jobs)} runs\n\n" + (f"All of them: `{same}`\n\n" if same else "") + _table(shown, rows)
    (Path(sweep) / "summary.md").write_text(text)
    return text


def _read(folder: Path) -> dict[str, Any]:
    job = json.loads((folder / JOB).read_text())
    job = {"job": folder.name, "overrides": job["overrides"], "state": job["state"], "error": job["error"] or ""}
    report: dict[str, Any] = {}
    if (folder / "metrics.json").is_file():
        report = json.loads((folder / "metrics.json").read_text())
    return {**job, "metrics": report.get("metrics", {}), "steps": report.get("step", ""), "seconds": report.get("seconds", "")}


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table whose columns are aligned, so that it reads well in a terminal too."""
    cells = [[_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    out = io.StringIO()
    for i, line in enumerate([list(columns), *cells]):
        out.write("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |\n")
        if i == 0:
            out.write("|" + "|".join("-" * (w + 2) for w in widths) + "|\n")
    return out.getvalue()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("gentok: which sweep? python -m gentok.sweep FOLDER")
    try:
        print(summarize(Path(sys.argv[1])))
    except (OSError, ValueError) as error:
        sys.exit(f"gentok: {error}")


if __name__ == "__main__":
    main()
