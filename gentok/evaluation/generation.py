"""protocol=generation: what a generator makes, against held-out items."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import save_grid
from gentok.data.progress import progress
from gentok.evaluation.context import Context, check_images, choice, left_out, scale_of
from gentok.evaluation.likelihood import NLL_SAMPLES, likelihood
from gentok.generators.base import AnyOrder, Causal
from gentok.metrics.distance import SIZE, distances, enough, halves, of_samples
from gentok.metrics.generation import accuracy, alike, check_variety, copying, variety
from gentok.sampling import Samples, pick_sampler, sample

__all__ = ["measure"]


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config, names = context.bundle, context.config, context.classes
    guidance = config["guidance"] if config["guidance"] is not None else bundle.meta.get("guidance", 1.0)
    sampler = pick_sampler(config["sampler"], type(bundle.generator), config["trust"])
    n = math.ceil(config["n"] / len(names)) * len(names) if names else config["n"]
    condition = list(range(len(names))) if names else None  # taken in turn: row i is of class i mod classes
    labels = torch.arange(n) % len(names) if names else None
    train, held_out = context.media("train")[0], context.media("held_out")[0]

    def draw(scale: float, what: str) -> Samples:
        with progress(what, n, "samples", config["progress"]) as advance:
            return sample(
                bundle, n=n, condition=condition, sampler=sampler, guidance=scale, guidance_schedule=config["guidance_schedule"],
                seed=config["seed"], batch_size=config["batch_size"], advance=advance, trust=config["trust"],
            )  # fmt: skip

    samples = draw(guidance, f"sampling, guidance {guidance:g}")
    media = samples.media.clamp(-1, 1)
    metrics: dict[str, Any] = {"samples": n, "guidance": guidance}
    protocol: dict[str, Any] = {
        "what": f"{n} samples{', as many of every class; accuracy: the judge reads the wanted class' if names else ''}; precision and "
        f"recall (k = 3) and KID (cubic kernel, unbiased, all rows) in {SPACE[bool(names)]} against held-out items, beside as many "
        "training items against the same; nearest training item by Euclidean distance of pixels in [-1, 1]; nll of held-out tokens under "
        "the unguided model",
        "sampler": {"name": type(sampler).__name__, "exact": sampler.exact, **asdict(sampler)},
        "guidance_schedule": config["guidance_schedule"],
        "batch_size": config["batch_size"],
    }
    if names:
        model, protocol["judge"] = context.judge()
        predicted, _ = context.predict(model, media)
        metrics["accuracy"], metrics["accuracy_per_class"] = accuracy(predicted, labels, names)
        if guidance != 1:
            plain = draw(1.0, "sampling, guidance 1")
            metrics["accuracy_at_guidance_1"] = accuracy(context.predict(model, plain.media.clamp(-1, 1))[0], labels, names)[0]
        else:
            metrics["accuracy_at_guidance_1"] = metrics["accuracy"]
        metrics["held_out_accuracy"] = protocol["judge"]["held_out_accuracy"]
    else:
        left_out(protocol, "accuracy: these data have no classes to train a judge on")
    metrics |= _distribution(context, media, protocol)
    metrics |= copying(media, held_out, train)
    metrics |= likelihood(context)
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["tokens_per_second"] = int(samples.tokens.present.sum()) / max(samples.seconds, 1e-9)
    metrics["seconds_of_sampling"] = samples.seconds
    protocol["network_calls"] = {name: {"calls": c, "positions": p} for name, (c, p) in samples.network_calls.items()}
    protocol["nll"] = "exact" if isinstance(bundle.generator, (AnyOrder, Causal)) else f"an upper bound, {NLL_SAMPLES} masks per item"
    save_grid(_by_class(media, len(names)), out / "samples.png", 10, scale=scale_of(media))
    return metrics, protocol


SPACE = {True: "the judge's features", False: f"EfficientNet-lite0's pooled features at {SIZE} px"}


def _distribution(context: Context, samples: Tensor, protocol: dict[str, Any]) -> dict[str, Any]:
    """Precision, recall, KID and the Fréchet distance of samples against held-out items; what cannot be had is left out, and said."""
    names, few = context.classes, context.config["few"]
    held_out, (train, labels) = context.media("held_out")[0], context.media("train")
    train = train[alike(labels, len(names), len(samples)) if names else choice(len(train), len(samples))]
    sets = {"samples": samples, "held-out images": held_out, "training images": train}
    metrics: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}

    def pooled(what: str) -> Tensor:
        if what not in kept:
            kept[what] = context.features(sets[what], what, what != "samples")
        return kept[what]

    try:
        check_variety(*(len(media) for media in sets.values()), few=few)
        if names:
            model = context.judge()[0]
            metrics |= variety(*(context.predict(model, media)[1] for media in sets.values()), few=few)
        else:
            check_images(samples)
            metrics |= variety(*map(pooled, sets), few=few)
    except (ValueError, ImportError) as error:
        left_out(protocol, str(error))
    try:
        check_images(samples)
        count = min(len(samples), len(train))
        enough(few, count, len(held_out))
        metrics |= distances(pooled("samples"), pooled("training images"), pooled("held-out images"), few)
        metrics["fd_efflite0_halves"] = halves(pooled("held-out images"), few)
        protocol["fd_efflite0"] = of_samples(count, len(held_out))
    except (ValueError, ImportError) as error:
        left_out(protocol, str(error))
    return metrics


def _by_class(media: Tensor, classes: int, columns: int = 10) -> Tensor:
    """Up to `columns` samples of each of up to 20 classes, a row per class; the first 100 where there are none."""
    if not classes:
        return media[: columns * columns]
    per_class = min(columns, len(media) // classes)
    rows = [torch.arange(per_class) * classes + c for c in range(min(classes, 20))]
    return media[torch.cat(rows)]
