"""The end of a run: the last validation, the bundle, metrics.json."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gentok.atomic import replacing
from gentok.bundle import Bundle, save, stamp
from gentok.interfaces import MediaData
from gentok.training.module import GentokModule

__all__ = ["command_line", "last_validation", "next_command", "skipped_items", "write_results"]


def last_validation(trainer: Any, task: GentokModule, loader: Any) -> dict[str, float]:
    """Validates once more, with what is going to be saved.

    Args:
        trainer: Lightning's.
        task: what was trained.
        loader: of the held-out items.

    Returns:
        {name: value} of the finite figures.
    """
    results = trainer.validate(task, loader, verbose=False)
    return {key: value for key, value in results[0].items() if math.isfinite(value)} if results else {}


def skipped_items(data: MediaData, device: torch.device) -> dict[str, Any]:
    """What could not be read of the data, or is not used; to be called by all processes.

    Args:
        data: the data of the run.
        device: where collectives of the processes take tensors.

    Returns:
        {"train" or "held_out": `MediaDataset.skipped`} of the splits with such items.
    """
    out = {}
    for name, split in (("train", data.train), ("held_out", data.held_out)):
        split.agree(device)
        found = split.skipped
        if found and (found["count"] or "left_out" in found):
            out[name] = found
    return out


def write_results(config: dict[str, Any], run: Path, task: GentokModule, metrics: dict[str, float], skipped: dict[str, Any]) -> None:
    """Writes the bundle and metrics.json.

    Args:
        config: of the run.
        run: its folder.
        task: what was trained.
        metrics: of the last validation.
        skipped: of `skipped_items`.
    """
    document = task.document()
    meta = {
        **document["meta"],
        "step": task.steps_done,
        "seconds": round(task.seconds_done, 1),
        "seed": config["seed"],
        "command": command_line(),
        "metrics": {k: round(v, 5) for k, v in metrics.items()},
    }
    kwargs: dict[str, Any] = {}
    if document["kind"] == "generator":
        frozen: Bundle = task.frozen.module
        tokenizer, tokenizer_config = frozen.tokenizer, frozen.tokenizer_config
        kwargs = {"generator": task.generator, "generator_config": config["generator"], "condition_spec": task.condition_spec}
        meta["guidance"] = task.guidance
    else:
        tokenizer, tokenizer_config = task.tokenizer, config["tokenizer"]
        stamp(tokenizer, tokenizer_config)
    dtype = config["bundle_dtype"]
    bundle = save(run / "bundle", tokenizer=tokenizer.cpu(), tokenizer_config=tokenizer_config, meta=meta, dtype=dtype, **kwargs)
    # names of a user's files are for the run's folder, not for a bundle that is handed on
    with replacing(run / "metrics.json", setting="paths.run") as temporary:
        temporary.write_text(json.dumps({**meta, "main_metric": task.main_metric, "skipped": skipped}, indent=1) + "\n")
    listed = f"listed in {run / 'metrics.json'}"
    for split, files in skipped.items():
        if files["count"]:
            print(f"{files['count']} of {files['of']} items of {split} could not be read and were skipped: {listed}")
        if "left_out" in files:
            print(f"not used beside the items of {split}: {files['left_out']['summary']}: {listed}")
    rest = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k != task.main_metric)
    main = f"{task.main_metric} {metrics[task.main_metric]:.4g}" if task.main_metric in metrics else "nothing was measured"
    print(f"\n{meta['step']} steps in {task.seconds_done:.0f} s: {main}" + (f"  ({rest})" if rest else ""))
    print(f"bundle: {bundle}\nnext:   {next_command(document['kind'], bundle, config['trust'])}\n        gentok report {run}")


def next_command(kind: str, bundle: Path, trust: Sequence[str]) -> str:
    """What a person does with a bundle.

    Args:
        kind: "generator" or "tokenizer".
        bundle: its folder.
        trust: packages of the user's own, which the bundle may need to be loaded.
    """
    own = f" trust=[{','.join(trust)}]" if trust else ""
    if kind == "generator":
        return f"python sample.py ckpt={bundle}{own} n=16"
    return f"gentok evaluate ckpt={bundle}{own}"


def command_line(*more: str) -> str:
    """The command that this process was started with, without places on this machine.

    Args:
        more: words "key=value" that take the place of those of the same key.
    """
    program, *rest = sys.orig_argv[1:] or ["-"]
    name, keys = Path(program).name, tuple(word.partition("=")[0] + "=" for word in more)
    rest = [word for word in rest if not (keys and word.startswith(keys))] + list(more)
    return shlex.join([name, *rest] if name == "gentok" else ["python", program if program.startswith("-") else name, *rest])
