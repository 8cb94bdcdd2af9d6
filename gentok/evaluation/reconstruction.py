"""protocol=reconstruction of images: what held-out items lose by encode and decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import pairs, save_grid
from gentok.errors import ConfigError
from gentok.evaluation.context import Context, check_images, choice, in_words, left_out, scale_of
from gentok.evaluation.sharing import Sharing, Work
from gentok.metrics.distance import LEAST, SIZE, distances, enough, halves
from gentok.metrics.image import frechet
from gentok.metrics.reconstruction import RoundTrip, fidelity

__all__ = ["measure", "reconstructions"]

ROWS = 10
"""Items in the image of prefixes."""


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reconstructs, measures and draws reconstructions.png, and prefixes.png where prefixes are asked for.

    Returns:
        metrics, protocol. What cannot be measured (too few items, a missing package) is left out, and noted.

    Raises:
        ConfigError: the code has no such prefixes.
    """
    prefixes, config = _prefixes(context), context.config
    trip = RoundTrip(context.bundle.tokenizer, prefixes)
    media, labels = context.media("held_out")
    parts = context.sharing.run(reconstructions, rows=context.rows("held_out"), prefixes=prefixes)
    for part in parts:
        trip.count(part)
    reconstructed = torch.cat([part.media for part in parts])
    of_prefix = {k: torch.cat([part.prefixes[k] for part in parts]) for k in parts[0].prefixes}
    metrics = {"items": len(media), **fidelity(reconstructed, media, config["batch_size"]), **trip.image_codes()}
    protocol: dict[str, Any] = {"what": in_words("reconstruction")}
    if context.classes:
        protocol["classifier"] = context.classifier_protocol
        metrics["recognised"], metrics["recognised_per_class"] = context.accuracy(reconstructed, labels)
        metrics["originals_recognised"] = protocol["classifier"]["held_out_accuracy"]
    try:
        metrics |= _distances(context, media, reconstructed)
        training = min(len(media), len(context.media("train")[0]))
        protocol["fd_efflite0"] = in_words("fd_efflite0_of_reconstructions", size=SIZE, least=LEAST, held_out=len(media), training=training)
    except (ValueError, ImportError) as error:
        left_out(protocol, str(error))
    for k, made in of_prefix.items():
        values = metrics[f"prefix_{k}"] = fidelity(made, media, config["batch_size"])
        if context.classes:
            values["recognised"] = context.accuracy(made, labels)[0]
        if "fd_efflite0" in metrics:
            values["fd_efflite0_own"] = _own_distance(context, made, media)
    if of_prefix:
        protocol["prefixes"] = in_words("prefixes")
        columns = torch.stack([*(made[:ROWS] for made in of_prefix.values()), media[:ROWS]], 1)
        save_grid(columns.flatten(0, 1), out / "prefixes.png", len(of_prefix) + 1, scale=scale_of(media))
    save_grid(pairs(media, reconstructed), out / "reconstructions.png", 10, scale=scale_of(media))
    return metrics, protocol


def reconstructions(sharing: Sharing, rows: list[int], prefixes: list[int]) -> Work:
    """Held-out items after encode and decode, `Reconstructed`."""
    return sharing.held_out_work(rows, RoundTrip(sharing.bundle.tokenizer, prefixes).made, media_alone=True)


def _prefixes(context: Context) -> list[int]:
    """Those asked for, in order. Raises ConfigError where the code has no such prefix."""
    wanted, spec = context.config.get("prefixes") or [], context.bundle.spec
    wanted = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
    if any(isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= spec.prefixes for k in wanted):
        able = f"any of 1 to {spec.prefixes}" if spec.prefixes > 1 else "none: this code has no nested levels, nested line or scales"
        raise ConfigError(f"prefixes={context.config['prefixes']}: of this tokenizer {able}")
    return sorted(set(wanted))


def _distances(context: Context, media: Tensor, reconstructed: Tensor) -> dict[str, Any]:
    few, count = context.config["few"], min(len(context.data.train), context.config["max_train"])
    check_images(media)
    enough(few, len(media), count)
    train = context.media("train")[0]
    reference = context.features(train[choice(len(train), len(media)).sort().values], "training images", True)
    real = context.features(media, "held-out images", True)
    made = context.features(reconstructed, "reconstructions", False)
    own = float(frechet(made, real))
    return {**distances(made, real, reference, few), "fd_efflite0_own": own, "fd_efflite0_halves": halves(real, few)}


def _own_distance(context: Context, made: Tensor, media: Tensor) -> float:
    """FD-efflite0 to the originals."""
    real = context.features(media, "held-out images", True)
    return float(frechet(context.features(made, "reconstructions", False), real))
