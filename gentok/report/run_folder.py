"""A run's folder as plain data for the report.

Nothing in it needs to be complete: what cannot be read is listed in `Run.notes`.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentok.report.run_media import Shown, images_of, sounds_of

__all__ = ["Run", "read_run", "runs_of"]

@dataclass
class Run:
    """What a run's folder holds.

    Attributes:
        folder: where it is.
        name: what the page calls it beside other runs.
        config: config.yaml, interpolations as they are written.
        series: column of metrics.csv -> [(steps done, value)], sorted, finite.
        held_out: the columns that validation wrote.
        result: metrics.json; {} while the run is unfinished.
        bundle: bundle/bundle.json.
        sizes: {"tokenizer.encoder": stored numbers}.
        images: kind -> images by step.
        image_counts: kind -> how many lie in the folder.
        sounds: kind -> those of the last step.
        overrides: of a job of a sweep, what it was started with: setting -> value.
        notes: what could not be read, and why.
    """

    folder: Path
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    held_out: set[str] = field(default_factory=set)
    result: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    images: dict[str, list[Shown]] = field(default_factory=dict)
    image_counts: dict[str, int] = field(default_factory=dict)
    sounds: dict[str, list[Shown]] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max([self.result.get("step") or 0, *(points[-1][0] for points in self.series.values())], default=0)


def runs_of(folder: Path) -> list[Path]:
    """The runs of a sweep's folder, those that have begun, in their order; the folder itself where it is no sweep's."""
    if (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file():
        return [folder]
    jobs = sorted((path.parent for path in folder.glob("*/job.json")), key=lambda path: (len(path.name), path.name))
    return [job for job in jobs if (job / "config.yaml").is_file() or (job / "metrics.csv").is_file()] or [folder]


def read_run(folder: Path, name: str = "", share: float = 1.0) -> Run:
    """Reads whatever of a run is there.

    Args:
        folder: the run's folder.
        name: what the page calls it beside other runs.
        share: of the images and sounds of a page, what may come from this run.

    Raises:
        FileNotFoundError: `folder` is no run's folder; the message names runs nearby.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run's folder {folder}{_near(folder.parent.glob('*/config.yaml'), 'beside it')}")
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.csv").is_file():
        near = _near(folder.glob("**/metrics.csv"), "runs inside it")
        raise FileNotFoundError(f"{folder} is no run's folder: it has neither config.yaml nor metrics.csv{near}")
    run = Run(folder, name)
    run.config = _read(run, "config.yaml", _config) or {}
    run.result = _read(run, "metrics.json", _result) or {}
    run.bundle = _read(run, "bundle/bundle.json", _json) or {}
    _read(run, "metrics.csv", lambda path: _metrics(run, path))
    if (folder / "job.json").is_file():
        run.overrides = _read(run, "job.json", lambda path: dict(word.split("=", 1) for word in _json(path)["overrides"])) or {}
    run.sizes = _sizes(run)
    attempt = functools.partial(_read, run)
    run.images, run.image_counts = images_of(folder, share, attempt)
    run.sounds, left_out = sounds_of(folder, share, attempt)
    run.notes += left_out
    return run


def _near(files: Any, what: str) -> str:
    found = sorted(str(path.parent) for path in files)
    return f"; {what}: {', '.join(found[:6])}" if found else ""


def _read(run: Run, name: str, read: Callable[[Path], Any]) -> Any:
    """read(path), or None and a note where the file cannot be read; None alone where there is none."""
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        return read(path)
    except Exception as error:  # a file half written or damaged in whatever way must not keep the rest from being shown
        run.notes.append(f"{name} could not be read ({type(error).__name__})")
        return None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _result(path: Path) -> dict[str, Any]:
    result = _json(path)
    skipped = (result.get("skipped") or {}).values()
    if not isinstance(result.get("step") or 0, int) or not all({"count", "of", "files"} <= set(found) for found in skipped):
        raise ValueError
    return {**result, "seconds": float(result.get("seconds") or 0)}


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return dict(OmegaConf.to_container(OmegaConf.load(path), resolve=False))


# ---------------------------------------------------------------------------------------------------- numbers


def _metrics(run: Run, path: Path) -> None:
    """Fills series and held_out.

    Lightning numbers steps from 0, so that step + 1 are done at a row; the validation after the last step is
    numbered one higher.
    """
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.DictReader(file))
    last = run.result.get("step") or math.inf
    found: dict[str, dict[int, float]] = {}
    trained: set[str] = set()
    broken: Counter[str] = Counter()
    for row in rows:
        values = {k: _number(v) for k, v in row.items() if k not in ("epoch", None) and v}
        step = values.pop("step", None)
        if step is None or not math.isfinite(step):
            continue
        if "loss" in values:
            trained |= set(values)
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                found.setdefault(name, {})[min(int(step) + 1, last)] = value
            elif value is not None:
                broken[name] += 1
    run.series = {name: sorted(points.items()) for name, points in sorted(found.items())}
    run.held_out = {name for name in run.series if "held_out" in name}
    if "loss" in run.series:
        run.held_out |= {n for n in run.series if n not in trained and not n.startswith(("train/", "codebook/train"))}
    run.notes += [f"{name}: {count} value{' was' if count == 1 else 's were'} not finite and left out" for name, count in broken.items()]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _sizes(run: Run) -> dict[str, int]:
    """Stored numbers per part, by the headers of the bundle's weights or, of an unfinished run, its
    checkpoint."""
    stored: dict[str, int] = {}
    for part in ("tokenizer", "generator"):
        shapes = _read(run, f"bundle/{part}/model.safetensors", _weights) or {}
        stored |= {f"{part}.{name}": count for name, count in shapes.items()}
    counts: Counter[str] = Counter()
    for name, count in (stored or _read(run, "checkpoints/last.ckpt", _checkpoint) or {}).items():
        if name.startswith(("tokenizer.", "generator.")):
            counts[".".join(name.split(".")[:2])] += count
    return dict(counts)


def _weights(path: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no dictionary


def _checkpoint(path: Path) -> dict[str, int]:
    import torch

    checkpoint = torch.load(path, map_location="meta", weights_only=True)
    state: Mapping[str, Any] = {
        **checkpoint["state_dict"],
        **{f"tokenizer.{name}": value for name, value in (checkpoint.get("tokenizer_state") or {}).items()},
    }
    return {name: value.numel() for name, value in state.items()}
