"""`python -m gentok.eval_classifier data=cifar10 data.shards=... data.held_out=... out=FILE`: trains the eval
classifier of photographs.

See gentok/metrics/eval_classifier.py. The file's header says what it learnt from, by which command, and what
share of the held-out items it recognises, measured after reading the file back. Every epoch prints a line;
progress=false prints only the last one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentok.build import build
from gentok.data.datasets import batches
from gentok.data.image_files import to_uint8
from gentok.devices import chosen_device
from gentok.errors import ConfigError
from gentok.evaluation.context import class_names
from gentok.interfaces import MediaData
from gentok.metrics.classifier import SEED, predict
from gentok.metrics.eval_classifier import BATCH, WIDTHS, load_eval_classifier, save_eval_classifier, train_eval_classifier

__all__ = ["train", "main"]


def train(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, measures and writes an eval classifier.

    Args:
        config: conf/eval_classifier.yaml as a plain dict.

    Returns:
        What the file's header says.

    Raises:
        ConfigError: the configuration or the data do not fit.
        OSError: the file cannot be written.
    """
    from gentok.training.trainer import precision

    if not isinstance(config["epochs"], int) or config["epochs"] < 1:
        raise ConfigError(f"epochs={config['epochs']}: a whole number, at least 1")
    device = chosen_device(config["device"])
    mixed = precision(config["precision"], "gpu" if device.startswith("cuda") else "cpu") == "bf16-mixed"
    out = Path(config["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise OSError(f"{out.parent} cannot be written: set out=FILE")
    data = build(config["data"], trust=config["trust"], where="data", role=MediaData)
    if len(data.media_shape) != 3:
        raise ConfigError("an eval classifier is of images, these data are sounds: choose other data")
    classes = class_names(data.condition_spec)
    if not classes:
        raise ConfigError("these data have no classes: there is nothing that a classifier could learn")
    parts = [(to_uint8(batch.media), batch.condition.parts["class"].ids) for batch in batches(data.train, 500, config["max_train"])]
    media, labels = map(torch.cat, zip(*parts))
    begun = time.perf_counter()

    def report(epoch: int, loss: float, share: float) -> None:
        if config["progress"]:
            speed = (epoch + 1) * (len(media) // BATCH) * BATCH / (time.perf_counter() - begun)
            print(f"epoch {epoch + 1}/{config['epochs']}: loss {loss:.3f}, {share:.1%} of the views, {speed:.0f} items/s", flush=True)

    dtype = torch.bfloat16 if mixed else torch.float32
    how = {"epochs": config["epochs"], "dtype": dtype, "widths": WIDTHS, "report": report}
    model = train_eval_classifier(media.to(device), labels.to(device), len(classes), **how)
    about: dict[str, Any] = {
        "classes": list(classes), "channels": data.media_shape[0], "size": list(data.media_shape[1:]), "widths": list(WIDTHS),
        "what": f"CNN of {2 * len(WIDTHS)} convolutions and {WIDTHS[-1]} features behind a whitening layer, {config['epochs']} epochs of "
        f"{len(media)} items in batches of {BATCH}, mirrored and shifted",
        "seed": SEED, "dtype": str(dtype).removeprefix("torch."), "epochs": config["epochs"],
        "seconds": round(time.perf_counter() - begun, 1),
        "command": "python -m gentok.eval_classifier " + " ".join(sys.argv[1:]),
        **{split: _portable(getattr(data, split).description) for split in ("train", "held_out")},
    }  # fmt: skip
    save_eval_classifier(model, out, about)
    stored, _ = load_eval_classifier(out)
    right, held = 0, len(data.held_out)
    for batch in batches(data.held_out, 1000):
        right += int((predict(stored.to(device), batch.media.to(device))[0].cpu() == batch.condition.parts["class"].ids).sum())
    about["held_out_accuracy"] = right / held
    save_eval_classifier(stored, out, about)
    print(f"{right / held:.2%} of {held} held-out items recognised; written to {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return about


def _portable(description: Mapping[str, Any]) -> dict[str, Any]:
    """Without the place on this machine: the file is handed on."""
    return {key: value for key, value in description.items() if key != "path"}


def main() -> None:
    """`python -m gentok.eval_classifier`."""
    from gentok.cli import run

    run("eval_classifier", train)


if __name__ == "__main__":
    main()
