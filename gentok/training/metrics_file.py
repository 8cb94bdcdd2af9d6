"""RUN/metrics.csv: what was logged, a row per step and occasion, empty where a measure was not taken.

Lightning's CSVLogger deletes the file of a run that is resumed. This one goes on behind the rows of the steps that the checkpoint holds,
and drops the rows of steps that are done again. A new measure adds a column: the file is then written anew under a temporary name and
renamed.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gentok.atomic import named_errors, replacing

__all__ = ["MetricsFile"]


class MetricsFile(Logger):
    """A logger that writes metrics.csv.

    Args:
        folder: the run's.
        start: the first step that will be logged; 0 for a new run.
    """

    def __init__(self, folder: str | os.PathLike[str], start: int = 0):
        super().__init__()
        self.path, self.start = Path(folder) / "metrics.csv", start
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> None:
        """There is no other object behind this one."""
        return None

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}  # tensors and floats
        self._rows.append({**plain, "step": step or 0})
        self.save()  # a kill loses no row

    def _begin(self) -> list[str]:
        """Opens the file of before, without the rows that are done again."""
        kept: list[dict[str, Any]] = []
        if self.start and self.path.is_file():
            text = self.path.read_text()
            rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a kill may have cut the last row off
            kept = [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < self.start]
        columns = sorted({name for row in kept for name, value in row.items() if value})
        self._write(kept, columns)
        return columns

    def _write(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        with replacing(self.path, setting="paths.run") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        if self._columns is None:
            self._columns = self._begin()
        rows, self._rows = self._rows, []
        new = {name for row in rows for name in row} - set(self._columns)
        if new:
            self._columns = sorted([*self._columns, *new])
            with open(self.path, newline="") as file:
                self._write([*csv.DictReader(file), *rows], self._columns)
            return
        with named_errors(self.path, "paths.run"), open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
