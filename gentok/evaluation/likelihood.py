"""protocol=nll, and the likelihood beside protocol=generation: bits per token of held-out items, exact or a bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from gentok.data.datasets import batches
from gentok.data.progress import progress
from gentok.evaluation.context import Context, choice
from gentok.region_likelihood import SCATTERED, region_cells, region_nll
from gentok.rng import RowRNG
from gentok.types import Frames

__all__ = ["NLL_SAMPLES", "likelihood", "measure"]

NLL_SAMPLES = 4
"""Masks per item where the likelihood is a bound; a causal model's is exact and takes none."""


def likelihood(context: Context) -> dict[str, float]:
    """Mean nll (or its bound) of the held-out items' tokens, in bits per token and, where media have a shape, per dimension of the media
    (channel of a pixel); None for a generator that has no likelihood. What the tokens leave out of the media is not counted."""
    bundle = context.bundle
    count = len(context.media("held_out")[0])
    nats, cells = 0.0, 0
    with progress("held-out nll", count, shown=context.config["progress"]) as advance, torch.inference_mode():
        held_out = context.data.held_out
        for batch in batches(held_out, context.config["batch_size"], rows=choice(len(held_out), count).sort().values.tolist()):
            rng = RowRNG.of(context.config["seed"], batch.index).to(context.device)
            batch = batch.to(context.device)
            tokens = bundle.encode_batch(batch, rng.fork("encoding"))
            nats += bundle.generator.nll_bound(tokens, batch.condition, rng, samples=NLL_SAMPLES).double().sum().item()
            cells += int(tokens.present.sum())
            advance(len(batch.index))
    bits = nats / math.log(2)
    out = {"held_out_bits_per_token": bits / cells}
    if bundle.spec.media_shape is not None and len(bundle.spec.media_shape) == 3:
        out["held_out_bits_per_dimension"] = bits / count / math.prod(bundle.spec.media_shape)
    return out


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    bundle, config = context.bundle, context.config
    region, frames = config["region"], 0
    asked = region_cells(region, bundle.spec)
    held_out, nats, bits, cells, exact = context.data.held_out, 0.0, [], 0, True
    count = min(len(held_out), config["max_held_out"])
    with progress("held-out nll", count, shown=config["progress"]) as advance, torch.inference_mode():
        for batch in batches(held_out, config["batch_size"], rows=choice(len(held_out), count).sort().values.tolist()):
            rng = RowRNG.of(config["seed"], batch.index).to(context.device)
            batch = batch.to(context.device)
            tokens = bundle.encode_batch(batch, rng.fork("encoding"))
            row, number, exact = region_nll(bundle.generator, tokens, batch.condition, asked, rng, NLL_SAMPLES)
            nats, cells = nats + row.sum().item(), cells + int(number.sum())
            frames += 0 if tokens.lengths is None else int(tokens.lengths.sum())
            bits.append((row / math.log(2)).cpu())
            advance(len(batch.index))
    error = torch.cat(bits).std().item() * math.sqrt(count) / cells if count > 1 else None
    metrics = {"items": count, "tokens": cells, "bits_per_token": nats / math.log(2) / cells, "standard_error": error}
    if frames and isinstance(bundle.spec.grid, Frames):
        metrics["bits_per_second"] = nats / math.log(2) / frames * bundle.spec.grid.rate_hz
    what = "all cells" if region is None else "a random half of each item's cells" if region == SCATTERED else f"the cells of {region}"
    return metrics, {
        "what": f"-log2 p of {what}{'' if region is None else ' given the others'} of held-out items under the unguided model, per asked "
        "token; standard error over items",
        "region": region,
        "nll": "exact" if exact else f"an upper bound, {NLL_SAMPLES} masks per item",
    }
