"""A run's folder as plain data for the report.

Nothing in it needs to be complete: what cannot be read is listed in `Run.notes`.
"""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Run", "Shown", "read_run"]

IMAGES = 8
"""Steps shown of every kind of image, evenly spaced, the last among them."""
IMAGES_BYTES = 1_000_000
"""Of the images of a page; those above their share are made smaller."""
IMAGE_SIDES = ((1200, 85), (1200, 60), (900, 60), (600, 60), (400, 40))
"""Longest side and JPEG quality of images that are made smaller: the first that fits is taken."""
SOUNDS = 16
"""Sounds shown of a page, first ones first."""
SOUNDS_BYTES = 1_000_000
"""Of the sounds of a page; of those above their share the beginning is kept."""


@dataclass
class Shown:
    """An image, or a sound of the last step that has some: `url` holds it, of a long sound the beginning that `name` tells."""

    step: int
    name: str
    url: str
    width: int = 0
    height: int = 0


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
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max([self.result.get("step") or 0, *(points[-1][0] for points in self.series.values())], default=0)


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
    run.sizes = _sizes(run)
    _images(run, share)
    _sounds(run, share)
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


# --------------------------------------------------------------------------------------------- images, sounds


def _by_kind(paths: Any) -> dict[str, list[tuple[int, Path]]]:
    """KIND_STEP... -> {kind: [(step, path)]}, by step."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        match = re.fullmatch(r"([^.].*)_(\d+)", path.stem)
        if match:
            kinds.setdefault(match[1], []).append((int(match[2]), path))
    return {kind: sorted(found) for kind, found in sorted(kinds.items())}


def _media(run: Run, chosen: Sequence[tuple[str, int, Path]], read: Callable[..., Shown], room: float) -> dict[str, list[Shown]]:
    """(kind, step, path) -> kind -> what could be read of it, in `room` bytes altogether."""
    out: dict[str, list[Shown]] = {}
    for kind, step, path in chosen:
        one = functools.partial(read, step=step, room=int(room / len(chosen)))
        found = _read(run, str(path.relative_to(run.folder)), one)
        out.setdefault(kind, []).extend([found] if found else [])
    return {kind: found for kind, found in out.items() if found}


def _images(run: Run, share: float) -> None:
    n, chosen = max(1, round(IMAGES * share)), []
    for kind, found in _by_kind((run.folder / "pictures").glob("*.png")).items():
        run.image_counts[kind] = len(found)
        places = sorted({len(found) - 1 - round(i * (len(found) - 1) / max(1, n - 1)) for i in range(n)})
        chosen += [(kind, *found[place]) for place in places]
    run.images = _media(run, chosen, _image, IMAGES_BYTES * share)


def _image(path: Path, step: int, room: int) -> Shown:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        size, kind, data = image.size, "png", path.read_bytes()
        small = image.convert("RGB")
    for side, quality in IMAGE_SIDES:
        if max(size) <= IMAGE_SIDES[0][0] and len(data) <= room:
            break
        buffer, kind = io.BytesIO(), "jpeg"
        small.thumbnail((side, side))
        small.save(buffer, "JPEG", quality=quality)
        size, data = small.size, buffer.getvalue()
    return Shown(step, path.stem, _url(f"image/{kind}", data), *size)


def _sounds(run: Run, share: float) -> None:
    last = [(kind, *found[-1]) for kind, found in _by_kind((run.folder / "sounds").glob("*")).items()]
    chosen = [(kind, step, path) for kind, step, folder in last for path in sorted(folder.glob("*.wav"))]
    most = max(1, round(SOUNDS * share))
    run.sounds = _media(run, chosen[:most], _sound, SOUNDS_BYTES * share)
    if most < len(chosen):
        run.notes.append(f"{len(chosen) - most} of {len(chosen)} sounds left out")


def _sound(path: Path, step: int, room: int) -> Shown:
    name = path.stem.replace("_", " ")
    if path.stat().st_size <= room:
        return Shown(step, name, _url("audio/wav", path.read_bytes()))
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(path) as file:
        frames = min(file.frames, max(1, (room - 44) // (2 * file.channels)))
        soundfile.write(buffer, file.read(frames), file.samplerate, "PCM_16", format="WAV")
        cut = f", the first {frames / file.samplerate:.1f} s of {file.frames / file.samplerate:.1f} s" if frames < file.frames else ""
    return Shown(step, name + cut, _url("audio/wav", buffer.getvalue()))


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
