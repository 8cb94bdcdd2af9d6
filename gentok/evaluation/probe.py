"""protocol=probe: how well a linear classifier reads the class from the vectors of a tokenizer"s codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentok.data.progress import progress
from gentok.errors import ConfigError
from gentok.evaluation.context import Context
from gentok.metrics.probe import POOLINGS, WEIGHTS, linear_probe, parts_of, pooled, quantized

__all__ = ["measure"]


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tokenizer, config = context.bundle.tokenizer, context.config
    if not context.classes:
        raise ConfigError("protocol=probe reads classes from tokens, and these data have none")
    if getattr(tokenizer, "codebook", None) is None:
        raise ConfigError(f"protocol=probe reads quantized vectors; a {type(tokenizer).__name__} has no codebook to look them up in")
    vectors, labels = {}, {}
    for split in ("train", "held_out"):
        media, labels[split] = context.media(split)
        with progress(f"encoding {split}", len(media), shown=config["progress"]) as advance:
            vectors[split] = quantized(tokenizer, media, batch_size=config["batch_size"], device=context.device, advance=advance)
    metrics: dict[str, Any] = {"train_items": len(labels["train"]), "test_items": len(labels["held_out"])}
    protocol: dict[str, Any] = {
        "what": "multinomial logistic regression on the vectors that the codebook looks up for the codes, channels of a named part or all; "
        "mean: over positions, flat: all positions side by side; features standardised on the training items; L2 weight chosen on the last "
        f"fifth of them out of {', '.join(f'{w:g}' for w in WEIGHTS)}, then fitted to all of them; accuracy on held-out items",
        "probes": {},
    }
    for part, channels in parts_of(tokenizer.codebook).items():
        for pooling in POOLINGS:
            train, held_out = (pooled(vectors[split][:, channels], pooling) for split in ("train", "held_out"))
            found = linear_probe(train, labels["train"], held_out, labels["held_out"], len(context.classes))
            metrics[f"{part}_{pooling}"] = found["accuracy"]
            protocol["probes"][f"{part}_{pooling}"] = found
    return metrics, protocol
