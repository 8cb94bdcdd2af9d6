"""resume=auto and resume=PATH: which checkpoint a run goes on from, and whether it is this run's.

A run that was killed and resumed ends, to the bit, where it would have ended: the checkpoint holds weights, averages, codebook statistics,
optimizer, schedule and the time used; the position in the data is steps * accumulate, since the loader's order is a function of (seed,
draw); noise is a function of (seed, step, item). What these functions depend on may not change between the two parts. `steps` and `budget`
may: the schedule then follows the new length. On the clock, a run depends on how fast the machine was, so this holds for runs limited by
steps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from gentok.build import component_name, identify
from gentok.bundle.files import NewerFormatError, read_training
from gentok.errors import FormatError
from gentok.training.checkpoint import LAST
from gentok.types import fingerprint
from gentok.types.formats import fitted

__all__ = ["check_optimizer", "check_same_run", "data_identity", "find", "read"]

_Count = Annotated[int, Field(ge=0)]

_SAME = {
    "tokenizer": ("tokenizer", "discriminator", "balancer", "consistency"),
    "generator": ("generator", "task.views"),
    "both": ("task.name", "task.augment", "seed", "batch_size", "optimizer", "schedule", "freeze", "callbacks.ema", "trainer.precision",
             "trainer.clip", "trainer.accumulate", "data._target_", "data.path", "limit_items", "overfit"),
}  # fmt: skip
"""Keys that the course of a run depends on."""
_LOCATIONS = ("tokenizer.ckpt", "data.path")  # may have moved; what lies there is compared

WHOLE = "[!.]*.ckpt"
"""Checkpoints of a folder: not the one that a killed process had begun to write, under a hidden name (gentok/atomic.py)."""


def find(resume: str | None, run: Path, overwrite: bool = False) -> Path | None:
    """The checkpoint that `resume` means.

    Args:
        resume: auto, a checkpoint's (or run's) path, or None.
        run: the run's folder.
        overwrite: whether what the folder holds may be replaced.

    Returns:
        Its path; None for a fresh start.

    Raises:
        FileNotFoundError: there is none where `resume` says.
        FormatError: resume=auto, and the checkpoints that are there cannot be read; with `overwrite`, only where a newer gentok can.
    """
    if resume is None or str(resume).lower() in ("", "false", "none"):
        return None
    if str(resume) == "auto":
        found = sorted((run / "checkpoints").glob(WHOLE), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        reason = None
        for path in found:
            try:
                read(path)
                return path
            except NewerFormatError:
                raise
            except FormatError as error:
                warnings.warn(f"resume=auto passes over a checkpoint: {error}", stacklevel=2)
                reason = error
        if reason is not None and not overwrite:
            raise FormatError(f"resume=auto: {reason}; to begin anew, move it away or set overwrite=true") from reason
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
    there = sorted(str(p) for p in [*parent.glob(WHOLE), *parent.glob(f"*/{LAST}"), *parent.glob(f"*/checkpoints/{LAST}")])
    hint = f"; there is {', '.join(there[:3])}" if there else f" ({parent} {'holds no checkpoint' if parent.is_dir() else 'is no folder'})"
    raise FileNotFoundError(f"resume={resume}: there is no checkpoint at {path}{hint}")


def read(path: Path) -> dict[str, Any]:
    """A training checkpoint, mapped from the file. Raises FormatError with a line on anything else."""
    checkpoint = read_training(path)
    missing = {"loops", "hyper_parameters", "training", "global_step", "optimizer_states", "lr_schedulers"} - set(checkpoint)
    if missing:
        raise FormatError(f"{path} is a torch file, but no checkpoint of gentok's training: it lacks {', '.join(sorted(missing))}")
    what = f"the checkpoint {path}"
    fitted(checkpoint, {"loops": dict[str, Any], "global_step": _Count, "hyper_parameters": dict[str, dict[str, Any]]}, what)
    training = checkpoint["training"]
    if not isinstance(training, Mapping) or not {"elapsed", "items"} <= set(training) or "config" not in checkpoint["hyper_parameters"]:
        raise FormatError(f"{what} does not say how far its run is: it is damaged")
    fitted(training, {"elapsed": Annotated[float, Field(ge=0)], "items": _Count, "data": dict[str, dict[str, str]]}, what)
    return checkpoint


def data_identity(data: Any) -> dict[str, Any]:
    """Which items a run is trained on, as a checkpoint keeps it.

    Args:
        data: a data component.

    Returns:
        {"items": of training, "data": {split: {"content": a hash of all that is known, "names": one that times of files are no part of}}}.
    """
    identity = {}
    for name in ("train", "held_out"):
        split = getattr(data, name)
        split = getattr(split, "data", split)  # of the first items of a set, the set
        content = str(split.description.get("content", ""))
        identity[name] = {"content": content, "names": _names(split) or content}
    return {"items": len(data.train), "data": identity}


def _names(split: Any) -> str:
    """A hash of the names and sizes of files, without the place where they lie: that of a copy is the same. "" where there are no files."""
    names, source = getattr(split, "names", None), getattr(split, "source", None)  # sets of files have them
    if names is None or source is None:
        return ""
    root = str(split.description.get("path", ""))
    sizes = [os.path.getsize(path) for path in getattr(source, "paths", [])]
    labels = getattr(split, "labels", None)  # likewise
    return fingerprint([name.removeprefix(root) for name in names], sizes, *([] if labels is None else [labels]))


def check_same_run(checkpoint: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any], path: Path, tokenizer: str) -> None:
    """Raises ValueError with a line where the checkpoint at `path` belongs to a run that this configuration does not go on with.

    Args:
        checkpoint: of the run of before.
        config: of the run that goes on.
        data: what `data_identity` says of its data.
        path: of the checkpoint.
        tokenizer: the fingerprint of the frozen tokenizer, for a generator; else "".
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
    _check_data(checkpoint["training"], data, path, f"{advice}={path}")
    stored = checkpoint["gentok"]["tokenizer"]["spec"].get("encode_fingerprint", "") if kind == "generator" else ""
    if tokenizer and stored and tokenizer != stored:
        raise ValueError(f"the checkpoint {path} is of a generator for the tokenizer {stored}; tokenizer.ckpt is {tokenizer}")


def _check_data(training: Mapping[str, Any], data: Mapping[str, Any], path: Path, advice: str) -> None:
    if training["items"] != data["items"]:
        raise ValueError(f"the checkpoint {path} is of a run on {training['items']} training items, here are {data['items']}; {advice}")
    for split, now in data["data"].items():
        before = training.get("data", {}).get(split, now)  # a checkpoint of before does not say it
        if before["names"] != now["names"]:
            raise ValueError(
                f"the data of the checkpoint {path} are not those of this run: files of {split} were changed, renamed, moved or replaced "
                f"since; bring them back, or {advice}"
            )
        if before["content"] != now["content"]:
            warnings.warn(
                f"the files of {split} have other times than when the run began, and the same names and sizes: right if they are a copy, "
                "wrong if their content was changed",
                stacklevel=2,
            )


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises FormatError where what a checkpoint has of an optimizer is not of its parameters: fused ones would read beyond it."""
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            shape = () if name == "step" else tuple(parameter.shape)
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
                came = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else str(value)[:60]
                raise FormatError(f"{name} of a parameter of shape {tuple(parameter.shape)} is {came}: it is damaged")


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
