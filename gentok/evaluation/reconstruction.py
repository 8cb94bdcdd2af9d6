"""protocol=reconstruction: what held-out items lose by encode and decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import pairs, save_grid
from gentok.data.progress import progress
from gentok.errors import ConfigError
from gentok.evaluation.context import Context, check_images, choice, left_out, scale_of
from gentok.metrics.distance import distances, enough, halves, of_reconstructions
from gentok.metrics.generation import accuracy
from gentok.metrics.image import frechet
from gentok.metrics.reconstruction import fidelity, reconstruction

__all__ = ["measure"]

ROWS = 10
"""Items in the picture of prefixes."""


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config = context.config
    prefixes = _prefixes(context)
    media, labels = context.media("held_out")
    with progress("reconstructing", len(media), shown=config["progress"]) as advance:
        reconstructed, metrics, of_prefix = reconstruction(
            context.bundle.tokenizer, media, prefixes=prefixes, batch_size=config["batch_size"], device=context.device, advance=advance
        )
    metrics = {"items": len(media), **metrics}
    protocol: dict[str, Any] = {
        "what": "each held-out item encoded and decoded once, clipped to [-1, 1]; PSNR (range 2) and SSIM (11-pixel Gaussian window) are "
        "means over items; usage: share of rows hit by the held-out items; entropy: of each level's codes, times its codes per item",
    }
    if context.classes:
        model, protocol["judge"] = context.judge()
        metrics["recognised"], metrics["recognised_per_class"] = accuracy(context.predict(model, reconstructed)[0], labels, context.classes)
        metrics["originals_recognised"] = protocol["judge"]["held_out_accuracy"]
    try:
        metrics |= _distances(context, media, reconstructed)
        protocol["fd_efflite0"] = of_reconstructions(len(media), min(len(media), len(context.media("train")[0])))
    except (ValueError, ImportError) as error:
        left_out(protocol, str(error))
    if of_prefix:
        protocol["prefixes"] = (
            "of the first k nested levels, tokens of a nested line or scales of a pyramid; prefixes.png: a row per item, a column per k, "
            "the original last"
        )
        for k, made in of_prefix.items():
            metrics[f"prefix_{k}"] = _of_prefix(context, made, media, labels, "fd_efflite0" in metrics)
        save_grid(torch.stack([*(made[:ROWS] for made in of_prefix.values()), media[:ROWS]], 1).flatten(0, 1), out / "prefixes.png",
                  len(of_prefix) + 1, scale=scale_of(media))  # fmt: skip
    save_grid(pairs(media, reconstructed), out / "reconstructions.png", 10, scale=scale_of(media))
    return metrics, protocol


def _prefixes(context: Context) -> list[int]:
    """Those asked for, in order. Raises ConfigError with a line where the code has no such prefix."""
    wanted, spec = context.config.get("prefixes") or [], context.bundle.spec
    wanted = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
    if any(isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= spec.prefixes for k in wanted):
        able = f"any of 1 to {spec.prefixes}" if spec.prefixes > 1 else "none: this code has no nested levels, nested line or scales"
        raise ConfigError(f"prefixes={context.config['prefixes']}: of this tokenizer {able}")
    return sorted(set(wanted))


def _of_prefix(context: Context, made: Tensor, media: Tensor, labels: Tensor | None, distant: bool) -> dict[str, float]:
    """psnr_db and ssim; recognised where there are classes; FD-efflite0 to the originals where the whole has one (`distant`)."""
    values = fidelity(made, media, context.config["batch_size"])
    if context.classes:
        values["recognised"] = accuracy(context.predict(context.judge()[0], made)[0], labels, context.classes)[0]
    if distant:
        real = context.features(media, "held-out images", True)
        values["fd_efflite0_own"] = float(frechet(context.features(made, "reconstructions", False), real))
    return values


def _distances(context: Context, media: Tensor, reconstructed: Tensor) -> dict[str, Any]:
    few, train = context.config["few"], context.data.train
    check_images(media)
    enough(few, len(media), min(len(train), context.config["max_train"]))
    train = context.media("train")[0]
    reference = context.features(train[choice(len(train), len(media)).sort().values], "training images", True)
    real = context.features(media, "held-out images", True)
    made = context.features(reconstructed, "reconstructions", False)
    own = float(frechet(made, real))
    return {**distances(made, real, reference, few), "fd_efflite0_own": own, "fd_efflite0_halves": halves(real, few)}
