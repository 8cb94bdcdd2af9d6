"""What all protocols of `python -m gentok.evaluate` share: the model, its data, media in memory, their
features, samples, the classifier."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import gentok
from gentok.bundle import Bundle
from gentok.data.datasets import batches, whole
from gentok.data.progress import progress
from gentok.evaluation.sharing import Sharing, samples
from gentok.interfaces import MediaData
from gentok.metrics.classifier import STEPS, classifier, predict
from gentok.metrics.distance import image_features
from gentok.metrics.eval_classifier import find_eval_classifier
from gentok.metrics.generation import accuracy
from gentok.rng import RowRNG
from gentok.samplers.base import described
from gentok.sampling_plan import Samples, joined
from gentok.types import Condition, ConditionSpec

__all__ = ["Context", "check_images", "choice", "class_names", "in_words", "left_out", "scale_of"]

GOOD = {"trained here": 0.97, "stored": 0.85}
"""Share of held-out items that an eval classifier must recognise: digits, and photographs."""


@dataclass
class Context:
    """The model, its data and the configuration; media, the sampler and the eval classifier are made when
    first asked for.

    Attributes:
        config: conf/evaluate.yaml as a plain dict.
        bundle: the model, on `device`.
        data: what it is measured on.
        device: where networks run.
        sharing: the processes that do its work; its sampler is None where there is no generator.
    """

    config: Mapping[str, Any]
    bundle: Bundle
    data: MediaData
    device: str
    sharing: Sharing
    _media: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    # ------------------------------------------------------------------------------ items

    def rows(self, split: str, in_memory: bool = True) -> list[int]:
        """The items of "train" or "held_out" that are used: up to the configured number and, where they are
        kept `in_memory`, memory."""
        data = getattr(self.data, split)
        count = min(len(data), self.config[f"max_{split}"])
        if in_memory:
            count = min(count, max(1, int(self.config["max_memory"] * 2**30) // (4 * math.prod(data.media_shape))))
        return choice(len(data), count).sort().values.tolist()

    def media(self, split: str) -> tuple[Tensor, Tensor | None]:
        """media float [n, ...] and labels (None without classes) of the `rows` of "train" or "held_out"."""
        if split not in self._media:
            rows = self.rows(split)
            with self.progress(f"reading {split}", len(rows), least=5001) as advance:
                self._media[split] = whole(getattr(self.data, split), rows=rows, advance=advance)
            if split == "held_out":
                self.sharing.held_out = rows, self._media[split][0]
        return self._media[split]

    def held_out_conditions(self, n: int) -> Condition | None:
        """Those of `n` held-out items, in turn; None where the model is conditioned on nothing."""
        if not self.bundle.condition_spec.parts:
            return None
        rows = self.rows("held_out")[:n]
        found = [batch.condition for batch in batches(self.data.held_out, self.config["batch_size"], rows=rows)]
        return Condition.concat(found).rows(torch.arange(n) % len(rows))

    def progress(self, what: str, total: int, unit: str = "items", least: int = 0) -> AbstractContextManager[Any]:
        """A progress bar where the configuration wants one and there are at least `least` items."""
        return progress(what, total, unit, self.config["progress"] and total >= least)

    # ------------------------------------------------------------------------------ samples

    @property
    def guidance(self) -> float:
        """The configured scale of guidance, else the bundle's."""
        return self.config["guidance"] if self.config["guidance"] is not None else self.bundle.meta.get("guidance", 1.0)

    def sample(self, n: int, condition: Any, guidance: float, duration: list[float] | None = None) -> Samples:
        """n samples; the arguments are those of gentok.sampling.sample."""
        return joined(self.sharing.run(samples, n=n, condition=condition, guidance=guidance, duration=duration))

    def sampling_protocol(self, samples: Samples) -> dict[str, Any]:
        """How samples were drawn."""
        return {
            "sampler": {**described(self.sharing.sampler), "name": type(self.sharing.sampler).__name__},
            "guidance_schedule": self.config["guidance_schedule"],
            "batch_size": self.config["batch_size"],
            "network_calls": {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()},
        }

    # ------------------------------------------------------------------------------ features, the classifier

    def features(self, media: Tensor, what: str, real: bool) -> Tensor:
        """EfficientNet-lite0's of media, those of real ones from the cache where they are there."""
        return image_features(
            media, device=self.device, real=real, cache=self.config["cache"],
            progress=lambda n: self.progress(f"features of {what}", n, "images", least=200),
        )  # fmt: skip

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes; () where there are none."""
        return class_names(self.data.condition_spec)

    @cached_property
    def _classifier(self) -> tuple[Any, dict[str, Any], str]:
        found = find_eval_classifier(self.config["classifier"], self.classes, tuple(self.data.media_shape))
        if found is not None:
            return found[0].to(self.device), found[1], "stored"
        media, labels = (part.to(self.device) for part in self.media("train"))
        steps = self.config["classifier_steps"] or STEPS
        how = {"steps": steps, "cache": self.config["cache"], "progress": self.progress}
        return *classifier(media, labels, len(self.classes), **how), "trained here"

    @cached_property
    def classifier_protocol(self) -> dict[str, Any]:
        """What the eval classifier is, its accuracy on held-out items included. Only where there are
        classes."""
        _, protocol, origin = self._classifier
        share = protocol["held_out_accuracy"] = self.accuracy(*self.media("held_out"))[0]
        if share < GOOD[origin]:
            protocol["warning"] = (
                f"the eval classifier recognises fewer than {GOOD[origin]:.0%} of held-out items: its figures compare models, no more"
            )
        elif share > protocol.get("own_held_out_accuracy", 1) + 0.03:
            protocol["warning"] = (
                "the eval classifier recognises these items better than its own held-out ones: it has probably learnt from some"
            )
        if "warning" in protocol:
            print(f"gentok: {protocol['warning']} ({share:.1%})")
        return protocol

    def predict(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """Classes int64 [n] and features float [n, D] that the eval classifier gives media float [n, C, H,
        W], on the CPU."""
        predicted, features = zip(*(predict(self._classifier[0], part.to(self.device)) for part in media.split(1000)))
        return torch.cat(predicted).cpu(), torch.cat(features).cpu()

    def accuracy(self, media: Tensor, labels: Tensor) -> tuple[float, dict[str, float]]:
        """The share of media that the eval classifier recognises as their labels, in all and of each
        class."""
        return accuracy(self.predict(media)[0], labels, self.classes)

    def protocol(self) -> dict[str, Any]:
        """What every report says: model, data, seed, versions."""
        splits = {"train": self.data.train, "held_out": self.data.held_out}
        return {
            "ckpt": str(self.config["ckpt"]),
            "tokens": self.bundle.spec.describe(),
            "data": {split: data.description for split, data in splits.items()},
            "skipped": {split: data.skipped for split, data in splits.items()},
            "items_used": {split: len(media) for split, (media, _) in self._media.items()},
            "seed": self.config["seed"],
            "dtype": "float32",
            "averaged_weights": self.config["ema"],
            "versions": {"gentok": gentok.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }


# ------------------------------------------------------------------------------ helpers


@lru_cache
def _texts() -> dict[str, str]:
    return yaml.safe_load((Path(__file__).parent / "protocols.yaml").read_text(encoding="utf-8"))


def in_words(name: str, **values: Any) -> str:
    """The text `name` of protocols.yaml with its values."""
    return _texts()[name].format(**values)


def class_names(spec: ConditionSpec) -> tuple[str, ...]:
    """Names of the classes that items have; () without classes."""
    return next((part.names for name, part in spec.parts if name == "class"), ())


def choice(length: int, count: int) -> Tensor:
    """`count` of `length` rows, int64, drawn once and for all (files of a folder lie class by class); all
    where there are no more."""
    return RowRNG.of(0, [0]).permutation(length)[0][:count]


def left_out(protocol: dict[str, Any], line: str) -> None:
    """Notes in the protocol, and on the screen, what could not be measured."""
    protocol["left_out"] = "; ".join(filter(None, (protocol.get("left_out"), line)))
    print(f"gentok: left out: {line}")


def check_images(media: Tensor) -> None:
    """Raises ValueError where media are no images that FD-efflite0 takes."""
    if media.dim() != 4 or media.shape[1] not in (1, 3):
        raise ValueError(f"FD-efflite0 is of images with 1 or 3 channels; these media are {tuple(media.shape[1:])}")


def scale_of(media: Tensor) -> int:
    """How many times small images are enlarged in a grid."""
    return max(1, 64 // media.shape[-1])
