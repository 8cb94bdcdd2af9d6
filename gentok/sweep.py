"""The table of a sweep: `python train.py -m seed=0,1 optimizer.lr=1e-3,3e-3 ...` runs every combination in
its own folder.

SWEEP/0, SWEEP/1, ...   run folders; each has job.json: its overrides, and how it ended
SWEEP/summary.csv       a row per job: what was varied, how it ended, the last value of every measure
SWEEP/summary.md        the same as a table to read, without the measures of single levels

`python -m gentok.sweep SWEEP` makes the table anew, also of a sweep that still runs or was stopped.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentok.command import run_command

__all__ = ["main", "measured", "note", "summarize"]

JOB = "job.json"


def note(folder: Path, overrides: Sequence[str], state: str, error: str | None = None) -> None:
    """Writes folder/job.json.

    Args:
        folder: the job's run folder.
        overrides: "key=value" as on the command line.
        state: "running", "done", "failed" or "stopped".
        error: why it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps({"overrides": list(overrides), "state": state, "error": error}, indent=1) + "\n")


def measured(folder: Path, name: str | None = None) -> float:
    """What a sweeper that searches (Optuna) is told of a run that is done.

    Args:
        folder: the run's.
        name: of a figure in its metrics.json; None: the one that the run is known by.

    Raises:
        ValueError: the run did not measure it.
    """
    result = _result(folder / "metrics.json")
    metrics, name = result.get("metrics", {}), name or result.get("main_metric")
    if name not in metrics:
        raise ValueError(f"sweep_metric={name}: the run {folder} did not measure it; there are {', '.join(metrics) or 'no figures'}")
    return float(metrics[name])


def summarize(sweep: str | Path) -> str:
    """Writes summary.csv and summary.md into a sweep's folder.

    Args:
        sweep: the folder.

    Returns:
        The text of summary.md.

    Raises:
        FileNotFoundError: there is no job in it.
    """
    sweep = Path(sweep)
    folders = sorted((p.parent for p in sweep.glob(f"*/{JOB}")), key=lambda p: (len(p.name), p.name))
    if not folders:
        raise FileNotFoundError(f"there is no sweep in {sweep}: expected folders with {JOB}, as `python train.py -m ...` makes them")
    jobs = [json.loads((folder / JOB).read_text()) for folder in folders]
    results = [_result(folder / "metrics.json") for folder in folders]
    values = [dict(word.split("=", 1) for word in job["overrides"]) for job in jobs]
    keys = list(dict.fromkeys(key for row in values for key in row))
    varied = [key for key in keys if len({row.get(key) for row in values}) > 1]
    measures = list(dict.fromkeys(name for result in results for name in result.get("metrics", {})))
    rows = [
        {"job": folder.name, **{key: row.get(key, "") for key in varied}, "state": job["state"]}
        | {key: result.get(key, "") for key in ("step", "seconds")}
        | {name: result.get("metrics", {}).get(name, "") for name in measures}
        | {"error": job["error"] or ""}
        for folder, job, result, row in zip(folders, jobs, results, values)
    ]
    columns = ["steps" if name == "step" else name for name in rows[0]]
    with open(sweep / "summary.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *(row.values() for row in rows)])
    shown = [i for i, name in enumerate(rows[0]) if not re.search(r"_\d+$", name) and any(row[name] != "" for row in rows)]
    cells = [columns, *([_cell(value) for value in row.values()] for row in rows)]
    same = " ".join(f"{key}={values[0][key]}" for key in keys if key not in varied)
    text = f"# Sweep of {len(jobs)} runs\n\n" + (f"All of them: `{same}`\n\n" if same else "")
    text += _table([[line[i] for i in shown] for line in cells])
    (sweep / "summary.md").write_text(text)
    return text


def _result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _table(cells: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned, so that it reads well in a terminal too; cells[0]: the
    head."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command. argv: the words behind its name; None: those of this process."""

    def show(sweep: str) -> None:
        print(summarize(sweep))

    run_command(show, argv, "python -m gentok.sweep FOLDER", positional="sweep")


if __name__ == "__main__":
    main()
