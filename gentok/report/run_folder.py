"""A run's folder as plain data for the report. Nothing in it needs to be complete: what cannot be read is listed in `Run.notes`."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Run", "Picture", "read_run"]

PICTURES = 8
"""Steps shown of every kind of picture, evenly spaced, the first and the last among them."""
PICTURE_SIDE = 1200
PICTURE_BYTES = 500_000
"""A larger picture is made smaller."""


@dataclass
class Picture:
    step: int
    url: str
    width: int
    height: int


@dataclass
class Run:
    """series: column of metrics.csv -> [(steps done, value)], sorted, finite; held_out: the columns that validation wrote;
    pictures: kind -> pictures by step, and how many lie in the folder; sizes: part -> {"tokenizer.encoder": stored numbers};
    result: metrics.json, {} while the run is unfinished."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    held_out: set[str] = field(default_factory=set)
    result: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    picture_counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max([self.result.get("step") or 0, *(points[-1][0] for points in self.series.values())], default=0)


def read_run(folder: Path) -> Run:
    """Raises FileNotFoundError with a line where `folder` is no run's folder."""
    if not folder.is_dir():
        near = sorted(str(p.parent) for p in folder.parent.glob("*/config.yaml")) if folder.parent.is_dir() else []
        raise FileNotFoundError(f"there is no run's folder {folder}" + (f"; beside it: {', '.join(near[:6])}" if near else ""))
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.csv").is_file():
        near = sorted(str(p.parent) for p in folder.glob("**/metrics.csv"))
        hint = f"; runs inside it: {', '.join(near[:6])}" if near else ""
        raise FileNotFoundError(f"{folder} is no run's folder: it has neither config.yaml nor metrics.csv{hint}")
    run = Run(folder)
    run.config = _guard(run, "config.yaml", _config) or {}
    run.result = _guard(run, "metrics.json", lambda path: json.loads(path.read_text())) or {}
    run.bundle = _guard(run, "bundle/bundle.json", lambda path: json.loads(path.read_text())) or {}
    _guard(run, "metrics.csv", lambda path: _metrics(run, path))
    run.sizes = _sizes(run)
    _pictures(run)
    return run


def _guard(run: Run, name: str, read: Any) -> Any:
    """read(path), or None and a note where the file cannot be read; None alone where there is none."""
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        return read(path)
    except Exception as error:  # a file half written or damaged in whatever way must not keep the rest from being shown
        run.notes.append(f"{name} could not be read ({type(error).__name__})")
        return None


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def _metrics(run: Run, path: Path) -> None:
    """Lightning numbers steps from 0, so that row's step + 1 are done; the validation after the last step is numbered one higher."""
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.DictReader(file))
    last = run.result.get("step") or math.inf
    found: dict[str, dict[int, float]] = {}
    trained: set[str] = set()
    broken: dict[str, int] = {}
    for row in rows:
        try:
            step = min(int(row["step"]) + 1, last)
        except (KeyError, TypeError, ValueError):
            continue
        values = {k: v for k, v in row.items() if k not in ("step", "epoch", None) and v}
        if "loss" in values:
            trained |= set(values)
        for name, text in values.items():
            try:
                value = float(text)
            except (TypeError, ValueError):
                continue
            if math.isfinite(value):
                found.setdefault(name, {})[step] = value
            else:
                broken[name] = broken.get(name, 0) + 1
    run.series = {name: sorted(points.items()) for name, points in sorted(found.items())}
    run.held_out = set(run.series) - trained - {n for n in run.series if n.startswith(("train/", "codebook/train"))}
    if "loss" not in run.series:
        run.held_out = {n for n in run.held_out if "held_out" in n}
    run.notes += [f"{name}: {count} values were no finite numbers and are left out" for name, count in broken.items()]


def _sizes(run: Run) -> dict[str, int]:
    """Stored numbers per part, from the headers of the bundle's weights; of an unfinished run, from its last checkpoint."""
    counts: dict[str, int] = {}
    for part in ("tokenizer", "generator"):
        header = _guard(run, f"bundle/{part}/model.safetensors", _safetensors_header)
        for name, entry in (header or {}).items():
            if name != "__metadata__":
                key = f"{part}.{name.split('.')[0]}"
                counts[key] = counts.get(key, 0) + math.prod(entry["shape"])
    if not counts:
        counts = _guard(run, "checkpoints/last.ckpt", _checkpoint_sizes) or {}
    return counts


def _safetensors_header(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(min(length, 100_000_000)))


def _checkpoint_sizes(path: Path) -> dict[str, int]:
    import torch

    checkpoint = torch.load(path, map_location="meta", weights_only=True)
    state = {**checkpoint["state_dict"], **{f"tokenizer.{k}": v for k, v in (checkpoint.get("tokenizer_state") or {}).items()}}
    counts: dict[str, int] = {}
    for name, value in state.items():
        key = ".".join(name.split(".")[:2])
        if key.startswith(("tokenizer.", "generator.")):
            counts[key] = counts.get(key, 0) + value.numel()
    return counts


# --------------------------------------------------------------------------------------------------------------- pictures


def _pictures(run: Run) -> None:
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted((run.folder / "pictures").glob("*.png")):
        match = re.fullmatch(r"(.+)_(\d+)", path.stem)
        if match and not path.name.startswith("."):
            kinds.setdefault(match[1], []).append((int(match[2]), path))
    for kind, found in kinds.items():
        found.sort()
        run.picture_counts[kind] = len(found)
        n = min(PICTURES, len(found))
        chosen = sorted({round(i * (len(found) - 1) / max(1, n - 1)) for i in range(n)})
        made = [_guard(run, f"pictures/{path.name}", lambda p, step=step: _picture(p, step)) for step, path in (found[i] for i in chosen)]
        run.pictures[kind] = [p for p in made if p is not None]


def _picture(path: Path, step: int) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        size = image.size
        data, kind = path.read_bytes(), "png"
        if max(size) > PICTURE_SIDE or len(data) > PICTURE_BYTES:
            image = image.convert("RGB")
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            size, buffer = image.size, io.BytesIO()
            image.save(buffer, "JPEG", quality=85)
            data, kind = buffer.getvalue(), "jpeg"
    return Picture(step, f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size)
