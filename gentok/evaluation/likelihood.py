"""protocol=nll, and the likelihood beside protocol=generation: bits per token of held-out items, exact or a
bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.evaluation.context import Context, in_words
from gentok.evaluation.sharing import Sharing, Work
from gentok.generators.base import AnyOrder, Causal, NextScale, Refines
from gentok.region_likelihood import SCATTERED, region_cells, region_nll
from gentok.rng import RowRNG
from gentok.types import Batch, Frames

__all__ = ["NLL_SAMPLES", "held_out_nll", "likelihood", "measure", "nll_in_words"]

NLL_SAMPLES = 4
"""Masks per item where the likelihood is a bound; a causal model's is exact and takes none."""


def held_out_nll(sharing: Sharing, rows: list[int], region: Any = None, of_items: bool = False) -> Work:
    """Of batches of held-out items: (nats float64 [B], cells int64 [B] that they are of, whether exact, frames). of_items: of whole items,
    by the generator's own bound; else of a region given the rest."""
    generator, seed = sharing.bundle.generator, sharing.config["seed"]
    asked = None if of_items else region_cells(region, sharing.bundle.spec)

    @torch.inference_mode()
    def make(batch: Batch) -> tuple[Tensor, Tensor, bool, int]:
        rng = RowRNG.of(seed, batch.index.cpu()).to(sharing.crew.device)
        tokens = sharing.bundle.encode_batch(batch, rng.fork("encoding"))
        if of_items:
            nats = generator.nll_bound(tokens, batch.condition, rng, samples=NLL_SAMPLES).double()
            cells, exact = tokens.present.sum((1, 2)), True
        else:
            nats, cells, exact = region_nll(generator, tokens, batch.condition, asked, rng, NLL_SAMPLES)
        return nats.cpu(), cells.cpu(), exact, 0 if tokens.lengths is None else int(tokens.lengths.sum())

    return sharing.held_out_work(rows, make)


def likelihood(context: Context) -> dict[str, float]:
    """Mean nll (or its bound) of the held-out items' tokens, in bits per token and, of images, per dimension
    (channel of a pixel). What the tokens leave out of the media is not counted. {} of a generator without nll."""
    if not context.bundle.generator.has_nll:
        return {}
    spec, rows = context.bundle.spec, context.rows("held_out")
    parts = context.sharing.run(held_out_nll, rows=rows, of_items=True)
    bits = sum(nats.sum().item() for nats, *_ in parts) / math.log(2)
    cells = sum(int(count.sum()) for _, count, *_ in parts)
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
    rows = context.rows("held_out", in_memory=False)
    parts = context.sharing.run(held_out_nll, rows=rows, region=region)
    nats, cells = sum(each.sum().item() for each, *_ in parts), sum(int(count.sum()) for _, count, *_ in parts)
    exact, frames = all(known for _, _, known, _ in parts), sum(length for *_, length in parts)
    bits = torch.cat([each / math.log(2) for each, *_ in parts])
    error = bits.std().item() * math.sqrt(len(rows)) / cells if len(rows) > 1 else None
    metrics = {"items": len(rows), "tokens": cells, "bits_per_token": nats / math.log(2) / cells, "standard_error": error}
    if frames and isinstance(spec.grid, Frames):
        metrics["bits_per_second"] = nats / math.log(2) / frames * spec.grid.rate_hz
    what = "all cells" if region is None else "a random half of each item's cells" if region == SCATTERED else f"the cells of {region}"
    return metrics, {
        "what": in_words("nll", cells=what + ("" if region is None else " given the others")),
        "region": region,
        "nll": nll_in_words(generator, exact),
    }
