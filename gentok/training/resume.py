"""resume=auto and resume=PATH: which checkpoint a run goes on from, and whether it is this run's.

A run that was killed and resumed ends, to the bit, where it would have ended: the checkpoint holds weights, averages, codebook statistics,
optimizer, schedule and the time used; the position in the data is steps * accumulate, since the loader's order is a function of (seed,
draw); noise is a function of (seed, step, item). What these functions depend on may not change between the two parts. `steps` and `budget`
may: the schedule then follows the new length. On the clock, a run depends on how fast the machine was, so this holds for runs limited by
steps.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentok.build import component_name, identify
from gentok.bundle import FORMAT
from gentok.errors import FormatError
from gentok.training.checkpoint import LAST

__all__ = ["find", "read", "check_same_run"]

_SAME = {
    "tokenizer": ("tokenizer", "discriminator", "balancer"),
    "generator": ("generator", "task.views"),
    "both": ("task.name", "task.augment", "seed", "batch_size", "optimizer", "schedule", "freeze", "callbacks.ema", "trainer.precision",
             "trainer.clip", "trainer.accumulate", "data._target_", "data.path", "limit_items", "overfit"),
}  # fmt: skip
"""Keys that the course of a run depends on."""
_LOCATIONS = ("tokenizer.ckpt", "data.path")  # may have moved; what lies there is compared


def find(resume: str | None, run: Path) -> Path | None:
    """The checkpoint that `resume` means, None for a fresh start. Raises FileNotFoundError with a line."""
    if resume is None or str(resume).lower() in ("", "false", "none"):
        return None
    if str(resume) == "auto":
        found = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in found:
            try:
                read(path)
                return path
            except FormatError as error:
                warnings.warn(f"resume=auto passes over a checkpoint: {error}", stacklevel=2)
        return None
    path = Path(str(resume)).expanduser()
    if (path / "bundle.json").is_file():
        raise FileNotFoundError(
            f"resume={path} is a bundle, which has weights but no optimizer: start a new run from it with init_from={path}"
        )
    for candidate in (path / "checkpoints" / LAST, path / LAST, path):
        if candidate.is_file():
            return candidate
    parent = path if path.is_dir() else path.parent
    there = sorted(str(p) for p in [*parent.glob("*.ckpt"), *parent.glob(f"*/{LAST}"), *parent.glob(f"*/checkpoints/{LAST}")])
    hint = f"; there is {', '.join(there[:3])}" if there else f" ({parent} {'holds no checkpoint' if parent.is_dir() else 'is no folder'})"
    raise FileNotFoundError(f"resume={resume}: there is no checkpoint at {path}{hint}")


def read(path: Path) -> dict[str, Any]:
    """A training checkpoint. Raises FormatError with a line on anything else."""
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path} is no training checkpoint: it is damaged, cut off, or something else")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch raises on a hostile or damaged file, the answer is the same
        raise FormatError(f"{path} was refused: it does not load with weights_only=True, so it may run code or is damaged") from error
    if not isinstance(checkpoint, dict) or "gentok" not in checkpoint or "loops" not in checkpoint:
        raise FormatError(f"{path} is a torch file, but no checkpoint of gentok's training")
    if checkpoint["gentok"]["format"] > FORMAT:
        raise FormatError(f"{path} is a checkpoint of format {checkpoint['gentok']['format']}; this gentok reads up to {FORMAT}: upgrade")
    return checkpoint


def check_same_run(checkpoint: Mapping[str, Any], config: Mapping[str, Any], items: int, path: Path, fingerprint: str = "") -> None:
    """Raises ValueError with a line where the checkpoint at `path` belongs to a run that this configuration does not go on with.

    items: of the training set. fingerprint: the frozen tokenizer's, for a generator.
    """
    before, config = identify(checkpoint["hyper_parameters"]["config"]), identify(config)
    kind = config["task"]["name"]
    names = (*(_SAME[kind] if before["task"]["name"] == kind else ()), *_SAME["both"])
    changed = []
    for name in names:
        old, new = _get(before, name), _get(config, name)
        if old is _MISSING or new is _MISSING or name in _LOCATIONS:
            continue
        changed += [f"{key}={value[1]} (there: {value[0]})" for key, value in _differences(old, new, name).items()]
    advice = "set them as they were, or start a new run from its weights with init_from"
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(f"the checkpoint {path} is of another run: {', '.join(changed[:3])}{more}; {advice}={path}")
    had = checkpoint["training"]["items"]
    if had != items:
        raise ValueError(f"the checkpoint {path} is of a run on {had} training items, here are {items}; {advice}={path}")
    stored = checkpoint["gentok"]["tokenizer"]["spec"].get("encode_fingerprint", "") if kind == "generator" else ""
    if fingerprint and stored and fingerprint != stored:
        raise ValueError(f"the checkpoint {path} is of a generator for the tokenizer {stored}; tokenizer.ckpt is {fingerprint}")


_MISSING = object()


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _MISSING
        config = config[part]
    return config


def _differences(old: Any, new: Any, name: str) -> dict[str, tuple[Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        out: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys((*old, *new)):
            out |= _differences(old.get(key), new.get(key), f"{name}.{key}")
        return out
    same = old == new or (isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and list(old) == list(new))
    return {} if same else {name: (_shown(old), _shown(new))}


def _shown(value: Any) -> Any:
    return "none" if value is None else component_name(value) or "..." if isinstance(value, Mapping) else value
