"""protocol=probe: how well a linear classifier reads the class from the vectors of a tokenizer's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentok.errors import ConfigError
from gentok.evaluation.context import Context, in_words
from gentok.metrics.probe import POOLINGS, WEIGHTS, linear_probe, parts_of, pooled, quantized

__all__ = ["measure"]


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures linear probes of every named part of the vectors, by every pooling.

    Returns:
        metrics ({part}_{pooling}: accuracy on held-out items), protocol.

    Raises:
        ConfigError: the data have no classes, or the tokenizer no codebook.
    """
    tokenizer, config = context.bundle.tokenizer, context.config
    if not context.classes:
        raise ConfigError("protocol=probe reads classes from tokens, and these data have none")
    if tokenizer.codebook is None:
        raise ConfigError(f"protocol=probe reads quantized vectors; a {type(tokenizer).__name__} has no codebook to look them up in")
    vectors, labels = {}, {}
    for split in ("train", "held_out"):
        media, labels[split] = context.media(split)
        with context.progress(f"encoding {split}", len(media)) as advance:
            vectors[split] = quantized(tokenizer, media, batch_size=config["batch_size"], device=context.device, advance=advance)
    metrics: dict[str, Any] = {"train_items": len(labels["train"]), "test_items": len(labels["held_out"])}
    probes = {}
    for part, channels in parts_of(tokenizer.codebook).items():
        for pooling in POOLINGS:
            train, held_out = (pooled(vectors[split][:, channels], pooling) for split in ("train", "held_out"))
            found = probes[f"{part}_{pooling}"] = linear_probe(train, labels["train"], held_out, labels["held_out"], len(context.classes))
            metrics[f"{part}_{pooling}"] = found["accuracy"]
    return metrics, {"what": in_words("probe", weights=", ".join(f"{w:g}" for w in WEIGHTS)), "probes": probes}
