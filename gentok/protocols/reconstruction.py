"""protocol=reconstruction: what held-out items lose by encode and decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from gentok.data.pictures import pairs, save_grid
from gentok.data.progress import progress
from gentok.metrics.distance import distances, enough, halves, of_reconstructions
from gentok.metrics.generation import accuracy
from gentok.metrics.image import frechet
from gentok.metrics.reconstruction import reconstruction
from gentok.protocols.context import Context, check_images, choice, left_out, scale_of

__all__ = ["measure"]


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config = context.config
    media, labels = context.media("held_out")
    with progress("reconstructing", len(media), shown=config["progress"]) as advance:
        reconstructed, metrics = reconstruction(
            context.bundle.tokenizer, media, batch_size=config["batch_size"], device=context.device, advance=advance
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
    save_grid(pairs(media, reconstructed), out / "reconstructions.png", 10, scale=scale_of(media))
    return metrics, protocol


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
