"""`python -m gentok.eval_classifier data=cifar10 data.shards=... data.held_out=... out=FILE`: trains the judge of photographs, see metrics/judge.py.

The file's header says what it learnt from, by which command, and what share of the held-out items it reads right, measured after reading
the file back. Every epoch prints a line; progress=false is silent but for the last one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.build import build
from gentok.data.datasets import batches
from gentok.errors import ConfigError
from gentok.metrics.classifier import predict
from gentok.metrics.eval_classifier import BATCH, SEED, WIDTHS, PhotoCNN, load_judge, save_judge, train_judge
from gentok.metrics.generation import accuracy

__all__ = ["judge", "find_judge", "main"]

ZOO = Path(__file__).resolve().parent.parent / "docs" / "zoo"


def find_judge(choice: str, classes: Sequence[str], media_shape: tuple[int, ...]) -> tuple[PhotoCNN, dict[str, Any]] | None:
    """A stored judge of these classes, in eval mode on the CPU, and its protocol; None where it shall be trained on the spot.

    choice: "auto", the one in docs/zoo of exactly these classes, channels and size, if there is one; "small", none; or a file.
    Raises FileNotFoundError or ValueError with a line on a file that is none, or is one of other classes or channels.
    """
    if choice == "small":
        return None
    for path in sorted(ZOO.glob("*judge*.safetensors")) if choice == "auto" else [Path(choice)]:
        model, about = load_judge(path)
        same = about["classes"] == list(classes) and about["channels"] == media_shape[0]
        if choice != "auto" and not same:
            raise ValueError(
                f"judge={choice} knows the classes {', '.join(about['classes'][:12])} in {about['channels']} channels; these data have "
                f"{', '.join(list(classes)[:12])} in {media_shape[0]}: judge=auto finds or trains one"
            )
        if choice != "auto" or (same and about["size"] == list(media_shape[1:])):
            keys = ("what", "version", "seed", "command", "epochs")
            own = {"file": f"docs/zoo/{path.name}" if choice == "auto" else choice, "own_held_out_accuracy": about["held_out_accuracy"]}
            return model, {**{k: about[k] for k in keys}, **own}
    return None


def judge(config: Mapping[str, Any]) -> dict[str, Any]:
    """conf/judge.yaml as a plain dict -> what the header says. Raises ValueError or OSError with a line."""
    from gentok.training.trainer import precision

    if not isinstance(config["epochs"], int) or config["epochs"] < 1:
        raise ConfigError(f"epochs={config['epochs']}: a whole number, at least 1")
    device = config["device"] if config["device"] != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    mixed = precision(config["precision"], "gpu" if device.startswith("cuda") else "cpu") == "bf16-mixed"
    dtype = torch.bfloat16 if mixed else torch.float32
    out = Path(config["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise OSError(f"{out.parent} cannot be written: set out=FILE")
    data = build(config["data"], trust=config["trust"], where="data")
    if len(data.media_shape) != 3:
        raise ConfigError("a judge looks at pictures, these data are sounds: choose other data")
    classes = next((part.names for name, part in data.condition_spec.parts if name == "class"), None)
    if classes is None:
        raise ConfigError("these data have no classes: there is nothing that a judge could learn")
    media, labels = _bytes(data.train, config["max_train"])
    begun = time.perf_counter()

    def report(epoch: int, loss: float, share: float) -> None:
        if config["progress"]:
            speed = (epoch + 1) * (len(media) // BATCH) * BATCH / (time.perf_counter() - begun)
            print(f"epoch {epoch + 1}/{config['epochs']}: loss {loss:.3f}, {share:.1%} of the views, {speed:.0f} items/s", flush=True)

    how = {"epochs": config["epochs"], "dtype": dtype, "widths": WIDTHS, "report": report}
    model = train_judge(media.to(device), labels.to(device), len(classes), **how)
    about: dict[str, Any] = {
        "classes": list(classes), "channels": data.media_shape[0], "size": list(data.media_shape[1:]), "widths": list(WIDTHS),
        "what": f"CNN of {2 * len(WIDTHS)} convolutions and {WIDTHS[-1]} features behind a whitening layer, {config['epochs']} epochs of "
        f"{len(media)} items in batches of {BATCH}, mirrored and shifted",
        "seed": SEED, "dtype": str(dtype).removeprefix("torch."), "epochs": config["epochs"],
        "seconds": round(time.perf_counter() - begun, 1),
        "command": "python -m gentok.eval_classifier " + " ".join(sys.argv[1:]),
        **{split: _anywhere(getattr(data, split).description) for split in ("train", "held_out")},
    }  # fmt: skip
    save_judge(model, out, about)
    stored, _ = load_judge(out)
    right, held = [], len(data.held_out)
    for batch in batches(data.held_out, 1000, held):
        right.append(predict(stored.to(device), batch.media.to(device))[0].cpu() == batch.condition.parts["class"].ids)
    share, _ = accuracy(torch.cat(right).long(), torch.ones(held, dtype=torch.int64), ("wrong", "right"))
    about["held_out_accuracy"] = share
    save_judge(stored, out, about)
    print(f"{share:.2%} of {held} held-out items read right; written to {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return about


def _anywhere(description: Mapping[str, Any]) -> dict[str, Any]:
    """Without the place on this machine: the file is handed on."""
    return {key: value for key, value in description.items() if key != "path"}


def _bytes(data: Any, limit: int) -> tuple[Tensor, Tensor]:
    """media uint8 [n, C, H, W] and labels int64 [n] of the first `limit` items."""
    count = min(len(data), limit)
    media, labels, at = torch.empty(count, *data.media_shape, dtype=torch.uint8), torch.empty(count, dtype=torch.int64), 0
    for batch in batches(data, 500, count):
        rows = slice(at, at + len(batch.index))
        media[rows] = ((batch.media + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        labels[rows] = batch.condition.parts["class"].ids
        at = rows.stop
    return media, labels


def main() -> None:
    """`python -m gentok.eval_classifier`."""
    from gentok.cli import run

    run("judge", judge)


if __name__ == "__main__":
    main()
