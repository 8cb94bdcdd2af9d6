"""The likelihood of a region of an item's tokens given the rest: what `python -m gentok.evaluate protocol=nll
region=left-half` measures.

AnyOrder   exact: the joint density of the asked cells in the model's own order, one call
Causal     exact where every other cell comes before the asked ones in the model's order (or in that in which it
           fills holes, if it has one); elsewhere it has no such density. Where the model ends items by itself, the
           end counts that comes behind asked cells, or stands at an asked one. Where slots of a step are dependent
           in the model, an approximation
Masked     a bound: the asked cells drawn one by one in a uniformly random order (Uria et al., arXiv
           1310.1757; Hoogeboom et al., arXiv 2110.02037): the mean over n = 1 .. R of (R / n) times the sum
           over n masked cells of -log p(cell | the others)
Refines    whole items alone: exact where ids are restricted to the clusters of their labels, else a bound
NextScale  whole items alone, exact
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentok.flow.random_cells import random_subset
from gentok.generators.base import AnyOrder, Causal, Masked, NextScale, Refines, capabilities
from gentok.prompt import KEEPS, keep_mask
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Condition, Raster, Tokens, TokenSpec

__all__ = ["SCATTERED", "region_cells", "region_nll"]

SCATTERED = "scattered"
"""A random half of each item's cells, drawn from the item's own stream."""


def region_cells(region: str | None, spec: TokenSpec) -> Tensor | None:
    """The cells that a region names.

    Args:
        region: one of gentok.prompt.KEEPS; a file (.npy) of truths of the shape [N], [K, N] or, on a raster,
            [H, W]; SCATTERED; None: all.
        spec: the tokens.

    Returns:
        bool [K, N]; None of scattered ones.

    Raises:
        ValueError: there is no such region or file, or it does not fit.
    """
    exists = spec.exists()
    if region is None:
        return exists
    if region == SCATTERED:
        return None
    if region in KEEPS:
        return exists & keep_mask(region, spec.grid)
    if not str(region).endswith(".npy"):
        raise ValueError(f"region={region}: choose one of {', '.join(KEEPS)}, {SCATTERED}, or a mask file (.npy)")
    if not Path(region).is_file():
        raise ValueError(f"region={region}: there is no such file")
    mask = torch.from_numpy(np.load(region, allow_pickle=False)).bool()
    shapes = [(spec.positions,), tuple(exists.shape)] + ([(spec.grid.h, spec.grid.w)] if isinstance(spec.grid, Raster) else [])
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"the mask {region} is {list(mask.shape)}; these tokens take {' or '.join(str(list(s)) for s in shapes)}")
    mask = exists & (mask if mask.shape == exists.shape else mask.reshape(1, -1))
    if not bool(mask.any()):
        raise ValueError(f"the mask {region} names no cell: its truths are the cells that are asked for")
    return mask


@torch.no_grad()
def region_nll(
    model: Any, tokens: Tokens, condition: Condition, asked: Tensor | None, rng: RowRNG, samples: int = 4
) -> tuple[Tensor, Tensor, bool]:
    """The nats of a region given the rest.

    Args:
        model: a generator.
        tokens: codes int64 [B, K, N].
        condition: B rows.
        asked: bool [K, N]; None: a random half of each row's cells.
        rng: for that half, and for the masks where it is a bound.
        samples: how many masks per row where it is a bound.

    Returns:
        Nats float64 [B], the number of cells int64 [B] that they are of, and whether they are exact.

    Raises:
        ValueError: the generator has no density of this region, nor a bound.
    """
    present = tokens.present
    chosen = random_subset(present, present.sum((1, 2)) // 2, rng) if asked is None else present & asked.to(present.device)
    count = chosen.sum((1, 2))
    if isinstance(model, AnyOrder):
        logits = model.logits(tokens, condition, model.rank(chosen))
    elif isinstance(model, Causal):
        model = model.arranged(Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), tokens.spec, tokens.lengths))
        return _causal(model, tokens, condition, chosen, asked, count)
    elif isinstance(model, Masked):
        return _bound(model, tokens, condition, chosen, rng, samples), count, False
    elif isinstance(model, (NextScale, Refines)):
        if not torch.equal(chosen, present):
            raise ValueError(
                f"this {type(model).__name__} has a density of whole items, and none of a region given the rest: leave region out, or "
                "evaluate an any_order (exact) or a masked generator (a bound)"
            )
        return model.nll_bound(tokens, condition, rng).double(), count, isinstance(model, NextScale) or model.members
    else:
        able = ", ".join(capabilities(model)) or "without capability"
        needs = "an AnyOrder, Causal, Masked, NextScale or Refines generator"
        raise ValueError(f"the nll of a region needs {needs}; {type(model).__name__} is {able}")
    return _nats(logits, tokens.codes, chosen), count, True


def _nats(logits: Tensor, codes: Tensor, chosen: Tensor) -> Tensor:
    """float64 [B], of chosen cells; logits [B, K, N, V] may hold anything elsewhere."""
    log_p = logits.masked_fill(~chosen[..., None], 0.0).double().log_softmax(-1)
    return -(log_p.gather(3, codes.clamp(min=0)[..., None])[..., 0] * chosen).sum((1, 2))


def _causal(
    model: Causal, tokens: Tokens, condition: Condition, chosen: Tensor, asked: Tensor | None, count: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """What `region_nll` returns. Raises ValueError where other cells come behind the chosen ones."""
    layout, end = model.layout, _ends(model, tokens)
    step = layout.step.to(chosen.device)
    behind = step > torch.where(chosen, step, layout.steps).flatten(1).amin(1)[:, None, None]
    drawn = chosen | (end & (behind if asked is None else behind | asked.to(end.device)))
    first = torch.where(drawn, step, layout.steps).flatten(1).amin(1)
    late = tokens.present & ~chosen & (step > first[:, None, None])
    if bool(late.any()):
        b, k, n = late.nonzero()[0].tolist()
        raise ValueError(
            f"in the {layout.name} order a region's density given the rest is known only where it comes last, and level {k}, position {n} "
            "comes after cells of this one: evaluate an any_order (exact) or a masked generator (a bound), or another region"
        )
    cache = model.init_cache(condition, tokens.batch, layout.steps)
    logits = model.logits(model.feed(tokens.codes), cache, torch.zeros_like(first))
    logits = logits[:, step.clamp(min=0), layout.slot.to(step.device).clamp(min=0)]
    nats = _nats(logits, tokens.codes.masked_fill(end, model.spec.vocab), drawn)
    per_step, of_region = (layout.flatten(cells.long()).clamp(min=0).sum(2) for cells in (tokens.present | end, drawn))
    return nats, count, model.exact_slots or not bool(((per_step > 1) & (of_region > 0)).any())


def _ends(model: Causal, tokens: Tokens) -> Tensor:
    """bool [B, K, N]: the cell in whose place each item ends; none of an item of full length, or where the model ends none."""
    absent = model.spec.exists().to(tokens.codes.device) & ~tokens.present
    absent[:, 1:] = False
    return absent & (absent.cumsum(2) == 1) & model.ends


def _bound(model: Masked, tokens: Tokens, condition: Condition, chosen: Tensor, rng: RowRNG, samples: int) -> Tensor:
    """float64 [B]."""
    count, offset = chosen.sum((1, 2)), rng.uniform()
    cells = tokens.present.sum((1, 2)).clamp(min=1)
    total = torch.zeros(tokens.batch, dtype=torch.float64, device=count.device)
    for j in range(samples):
        number = torch.minimum(((offset + j / samples) % 1.0 * count).to(torch.int64) + 1, count)
        masked = random_subset(chosen, number, rng)
        now = Tokens(tokens.codes.masked_fill(masked, UNKNOWN), tokens.spec, tokens.lengths)
        total += _nats(model.logits(now, condition, number / cells), tokens.codes, masked) * count / number.clamp(min=1)
    return total / samples
