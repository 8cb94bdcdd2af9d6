"""What all protocols of `python -m gentok.evaluate` share: the model, its data, media in memory, their features and the judge."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gentok
from gentok.bundle import Bundle
from gentok.data.datasets import whole
from gentok.data.progress import progress
from gentok.eval_classifier import find_judge
from gentok.metrics.classifier import STEPS, classifier, predict
from gentok.metrics.distance import image_features
from gentok.metrics.generation import accuracy
from gentok.rng import RowRNG

__all__ = ["Context", "choice", "left_out", "check_images", "scale_of"]

GOOD_JUDGE = {"trained here": 0.97, "stored": 0.85}
"""Share of held-out items that a judge must read right: digits, and photographs."""


@dataclass
class Context:
    """The model, its data, and, made when first asked for, the media in memory and the judge."""

    config: Mapping[str, Any]
    bundle: Bundle
    data: Any
    device: str

    def __post_init__(self) -> None:
        self._media: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._judge: tuple[Any, dict[str, Any]] | None = None

    def rows(self, split: str) -> list[int]:
        """The items of "train" or "held_out" that are used: up to the configured number and memory."""
        data = getattr(self.data, split)
        fits = int(self.config["max_memory"] * 2**30) // (4 * math.prod(data.media_shape))
        count = min(len(data), self.config[f"max_{split}"], max(1, fits))
        return choice(len(data), count).sort().values.tolist()

    def media(self, split: str) -> tuple[Tensor, Tensor | None]:
        """media float [n, ...] and labels (None without classes) of "train" or "held_out", up to the configured number and memory."""
        if split not in self._media:
            data, rows = getattr(self.data, split), self.rows(split)
            count = len(rows)
            with progress(f"reading {split}", count, shown=self.config["progress"] and count > 5000) as advance:
                self._media[split] = whole(data, rows=rows, advance=advance)
        return self._media[split]

    def features(self, media: Tensor, what: str, real: bool) -> Tensor:
        """EfficientNet-lite0's of media, those of real ones from the cache where they are there."""
        shown = self.config["progress"] and len(media) >= 200
        return image_features(
            media, device=self.device, real=real, cache=self.config["cache"],
            progress=lambda n: progress(f"features of {what}", n, "images", shown),
        )  # fmt: skip

    @property
    def classes(self) -> tuple[str, ...]:
        return next((part.names for name, part in self.data.condition_spec.parts if name == "class"), ())

    def judge(self) -> tuple[Any, dict[str, Any]]:
        """The classifier of these data and its protocol, its accuracy on held-out items included. Only where there are classes."""
        if self._judge is None:
            found = find_judge(self.config["judge"], self.classes, tuple(self.data.media_shape))
            if found is not None:
                model, protocol = found
                model = model.to(self.device)
            else:
                media, labels = self.media("train")
                steps = self.config["judge_steps"] or STEPS
                shown = progress if self.config["progress"] else None
                media, labels = media.to(self.device), labels.to(self.device)
                model, protocol = classifier(media, labels, len(self.classes), steps=steps, cache=self.config["cache"], progress=shown)
            held_out, held_labels = self.media("held_out")
            share = protocol["held_out_accuracy"] = accuracy(self.predict(model, held_out)[0], held_labels, self.classes)[0]
            good = GOOD_JUDGE["trained here" if found is None else "stored"]
            if share < good:
                protocol["warning"] = f"the judge reads fewer than {good:.0%} of held-out items: its figures compare models, no more"
            elif share > protocol.get("own_held_out_accuracy", 1) + 0.03:
                protocol["warning"] = "the judge reads these items better than its own held-out ones: it has probably learnt from some"
            if "warning" in protocol:
                print(f"gentok: {protocol['warning']} ({share:.1%})")
            self._judge = model, protocol
        return self._judge

    def predict(self, model: Any, media: Tensor) -> tuple[Tensor, Tensor]:
        predicted, features = zip(*(predict(model, part.to(self.device)) for part in media.split(1000)))
        return torch.cat(predicted).cpu(), torch.cat(features).cpu()

    def protocol(self) -> dict[str, Any]:
        return {
            "ckpt": str(self.config["ckpt"]),
            "tokens": self.bundle.spec.describe(),
            "data": {split: getattr(self.data, split).description for split in ("train", "held_out")},
            "skipped": {split: getattr(getattr(self.data, split), "skipped", None) for split in ("train", "held_out")},
            "items_used": {split: len(media) for split, (media, _) in self._media.items()},
            "seed": self.config["seed"],
            "dtype": "float32",
            "averaged_weights": self.config["ema"],
            "versions": {"gentok": gentok.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def choice(length: int, count: int) -> Tensor:
    """`count` of `length` rows, int64, drawn once and for all (files of a folder lie class by class); all where there are no more."""
    return RowRNG.of(0, [0]).permutation(length)[0][:count]


def left_out(protocol: dict[str, Any], line: str) -> None:
    protocol["left_out"] = "; ".join(filter(None, (protocol.get("left_out"), line)))
    print(f"gentok: left out: {line}")


def check_images(media: Tensor) -> None:
    if media.dim() != 4 or media.shape[1] not in (1, 3):
        raise ValueError(f"FD-efflite0 is of images with 1 or 3 channels; these media are {tuple(media.shape[1:])}")


def scale_of(media: Tensor) -> int:
    return max(1, 64 // media.shape[-1])
