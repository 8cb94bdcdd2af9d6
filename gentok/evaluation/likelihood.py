"""protocol=nll, and the likelihood beside protocol=generation: bits per token of held-out items, exact or a
bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.evaluation.context import Context, in_words
from gentok.generators.base import AnyOrder, Causal, NextScale, Refines
from gentok.region_likelihood import SCATTERED, region_cells, region_nll
from gentok.rng import RowRNG
from gentok.types import Condition, Frames, Tokens

__all__ = ["NLL_SAMPLES", "likelihood", "measure", "nll_in_words"]

NLL_SAMPLES = 4
"""Masks per item where the likelihood is a bound; a causal model's is exact and takes none."""
Nats = Callable[[Tokens, Condition, RowRNG], tuple[Tensor, Tensor, bool]]
"""(tokens, condition, rng) -> (nats float64 [B], cells int64 [B] that they are of, whether exact)."""


@torch.inference_mode()
def _summed(context: Context, nats_of: Nats, rows: list[int]) -> tuple[float, int, int, list[Tensor], bool]:
    """(nats, cells, frames, bits of each batch's items, whether exact) of held-out items."""
    nats, cells, frames, bits, exact = 0.0, 0, 0, [], True
    for batch in context.held_out_batches("held-out nll", rows):
        rng = RowRNG.of(context.config["seed"], batch.index.cpu()).to(context.device)
        tokens = context.bundle.encode_batch(batch, rng.fork("encoding"))
        row, count, known = nats_of(tokens, batch.condition, rng)
        nats, cells, exact = nats + row.sum().item(), cells + int(count.sum()), exact and known
        frames += 0 if tokens.lengths is None else int(tokens.lengths.sum())
        bits.append((row / math.log(2)).cpu())
    return nats, cells, frames, bits, exact


def likelihood(context: Context) -> dict[str, float]:
    """Mean nll (or its bound) of the held-out items' tokens, in bits per token and, of images, per dimension
    (channel of a pixel). What the tokens leave out of the media is not counted. {} of a generator without nll."""
    if not context.bundle.generator.has_nll:
        return {}
    generator, spec = context.bundle.generator, context.bundle.spec

    def nats_of(tokens: Tokens, condition: Condition, rng: RowRNG) -> tuple[Tensor, Tensor, bool]:
        return generator.nll_bound(tokens, condition, rng, samples=NLL_SAMPLES).double(), tokens.present.sum((1, 2)), True

    rows = context.rows("held_out")
    nats, cells, *_ = _summed(context, nats_of, rows)
    bits = nats / math.log(2)
    out = {"held_out_bits_per_token": bits / cells}
    if spec.media_shape is not None and len(spec.media_shape) == 3:
        out["held_out_bits_per_dimension"] = bits / len(rows) / math.prod(spec.media_shape)
    return out


def nll_in_words(generator: Any, exact: bool | None = None) -> str:
    """What the nll of a generator is. exact: whether it is exact; None: as that of whole items is."""
    if not generator.has_nll:
        return f"none: {type(generator).__name__} draws vectors by a flow, and gives no probabilities"
    refines = isinstance(generator, Refines)
    if exact is None:
        exact = generator.members if refines else isinstance(generator, (AnyOrder, Causal, NextScale))
    if exact:
        return "exact"
    return "an upper bound, by the ids' own labels alone" if refines else f"an upper bound, {NLL_SAMPLES} masks per item"


def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures the nll of a region of held-out items' tokens, or of all of them.

    Returns:
        metrics (items, tokens, bits_per_token, its standard_error, and bits_per_second of sounds), protocol.

    Raises:
        ValueError: there is no such region, or the generator has no density of it.
    """
    generator, spec, region = context.bundle.generator, context.bundle.spec, context.config["region"]
    if not generator.has_nll:
        raise ValueError(f"protocol=nll: there is {nll_in_words(generator)}; choose protocol=generation")
    asked, rows = region_cells(region, spec), context.rows("held_out", in_memory=False)

    def nats_of(tokens: Tokens, condition: Condition, rng: RowRNG) -> tuple[Tensor, Tensor, bool]:
        return region_nll(generator, tokens, condition, asked, rng, NLL_SAMPLES)

    nats, cells, frames, bits, exact = _summed(context, nats_of, rows)
    error = torch.cat(bits).std().item() * math.sqrt(len(rows)) / cells if len(rows) > 1 else None
    metrics = {"items": len(rows), "tokens": cells, "bits_per_token": nats / math.log(2) / cells, "standard_error": error}
    if frames and isinstance(spec.grid, Frames):
        metrics["bits_per_second"] = nats / math.log(2) / frames * spec.grid.rate_hz
    what = "all cells" if region is None else "a random half of each item's cells" if region == SCATTERED else f"the cells of {region}"
    return metrics, {
        "what": in_words("nll", cells=what + ("" if region is None else " given the others")),
        "region": region,
        "nll": nll_in_words(generator, exact),
    }
