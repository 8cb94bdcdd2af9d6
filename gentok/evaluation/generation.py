"""protocol=generation of images: what a generator makes, against held-out items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import save_grid
from gentok.evaluation.context import Context, check_images, choice, in_words, left_out, scale_of
from gentok.evaluation.likelihood import likelihood, nll_in_words
from gentok.metrics.distance import LEAST, SIZE, distances, enough, halves
from gentok.metrics.generation import alike, check_variety, copying, variety

__all__ = ["measure"]

SPACE = {True: "the eval classifier's features", False: f"EfficientNet-lite0's pooled features at {SIZE} px"}
"""Whether there are classes -> where distances are taken."""


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples equally many images of every class, measures them and draws some of them into samples.png.

    Returns:
        metrics, protocol. What cannot be measured (no classes, too few items, a missing package) is left out,
        and noted.
    """
    bundle, config, names = context.bundle, context.config, context.classes
    guidance = context.guidance
    n = math.ceil(config["n"] / len(names)) * len(names) if names else config["n"]
    condition = list(range(len(names))) if names else context.held_out_conditions(n)  # classes in turn: row i is of class i mod classes
    train, held_out = context.media("train")[0], context.media("held_out")[0]
    samples = context.sample(n, condition, guidance)
    media = samples.media.clamp(-1, 1)
    metrics: dict[str, Any] = {"samples": n, "guidance": guidance}
    asked = "" if condition is None else ", given the conditions of held-out items in turn"
    asked = ", as many of every class; accuracy: the eval classifier recognises the wanted class" if names else asked
    protocol: dict[str, Any] = {
        "what": in_words("generation", n=n, accuracy=asked, space=SPACE[bool(names)]),
        **context.sampling_protocol(samples),
        "nll": nll_in_words(bundle.generator),
    }
    if names:
        labels = torch.arange(n) % len(names)
        protocol["classifier"] = context.classifier_protocol
        metrics["accuracy"], metrics["accuracy_per_class"] = context.accuracy(media, labels)
        metrics["accuracy_at_guidance_1"] = metrics["accuracy"]
        if guidance != 1:
            plain = context.sample(n, condition, 1.0).media.clamp(-1, 1)
            metrics["accuracy_at_guidance_1"] = context.accuracy(plain, labels)[0]
        metrics["held_out_accuracy"] = protocol["classifier"]["held_out_accuracy"]
    else:
        left_out(protocol, "accuracy: these data have no classes to train a classifier on")
    metrics |= _distribution(context, media, protocol)
    metrics |= copying(media, held_out, train)
    metrics |= likelihood(context)
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["tokens_per_second"] = int(samples.tokens.present.sum()) / max(samples.seconds, 1e-9)
    metrics["seconds_of_sampling"] = samples.seconds
    save_grid(_by_class(media, len(names)), out / "samples.png", 10, scale=scale_of(media))
    return metrics, protocol


def _distribution(context: Context, samples: Tensor, protocol: dict[str, Any]) -> dict[str, Any]:
    """Precision, recall, KID and the Fréchet distance of samples against held-out items; what cannot be had
    is left out, and noted."""
    classes, few = len(context.classes), context.config["few"]
    held_out, (train, labels) = context.media("held_out")[0], context.media("train")
    train = train[alike(labels, classes, len(samples)) if classes else choice(len(train), len(samples))]
    sets = {"samples": samples, "held-out images": held_out, "training images": train}
    metrics: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}

    def pooled(what: str) -> Tensor:
        if what not in kept:
            kept[what] = context.features(sets[what], what, what != "samples")
        return kept[what]

    def of_variety() -> None:
        check_variety(*map(len, sets.values()), few=few)
        if not classes:
            check_images(samples)
        metrics.update(variety(*([context.predict(media)[1] for media in sets.values()] if classes else map(pooled, sets)), few=few))

    def of_distance() -> None:
        check_images(samples)
        count = min(len(samples), len(train))
        enough(few, count, len(held_out))
        metrics.update(distances(pooled("samples"), pooled("training images"), pooled("held-out images"), few))
        metrics["fd_efflite0_halves"] = halves(pooled("held-out images"), few)
        protocol["fd_efflite0"] = in_words("fd_efflite0_of_samples", size=SIZE, least=LEAST, samples=count, held_out=len(held_out))

    for measured in (of_variety, of_distance):
        try:
            measured()
        except (ValueError, ImportError) as error:
            left_out(protocol, str(error))
    return metrics


def _by_class(media: Tensor, classes: int, columns: int = 10) -> Tensor:
    """Up to `columns` samples of each of up to 20 classes, a row per class; the first 100 where there are
    none."""
    if not classes:
        return media[: columns * columns]
    per_class = min(columns, len(media) // classes)
    rows = [torch.arange(per_class) * classes + c for c in range(min(classes, 20))]
    return media[torch.cat(rows)]
