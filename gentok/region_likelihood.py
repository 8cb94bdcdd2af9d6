"""The likelihood of a region of an item's tokens given the rest: what `python -m gentok.evaluate protocol=nll region=left-half` measures.

AnyOrder   exact: the joint density of the asked cells in the model's own order, one call
Causal     exact where every other cell comes before the asked ones in the model's order; elsewhere it has no such density
Masked     a bound: the asked cells drawn one by one in a uniformly random order (Uria et al., arXiv 1310.1757; Hoogeboom et al.,
           arXiv 2110.02037): the mean over n = 1 .. R of (R / n) times the sum over n hidden cells of -log p(cell | the others)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import AnyOrder, Causal, Masked, capabilities
from gentok.prompt import KEEPS, keep_mask
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Condition, Tokens, TokenSpec

__all__ = ["SCATTERED", "region_cells", "region_nll"]

SCATTERED = "scattered"
"""A random half of each item's cells, of its own noise."""


def region_cells(region: str | None, spec: TokenSpec) -> Tensor | None:
    """bool [K, N], the cells that a region names: all (None), one of prompts.KEEPS, or a file of numpy's; None for scattered ones.

    A file (.npy) holds truths of the shape [N], [K, N] or, on a raster, [H, W]. Raises ValueError in a line.
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
    import numpy as np

    mask = torch.from_numpy(np.load(region, allow_pickle=False)).bool()
    shapes = [(spec.positions,), (spec.levels, spec.positions)]
    if hasattr(spec.grid, "h"):
        shapes.append((spec.grid.h, spec.grid.w))
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"the mask {region} is {list(mask.shape)}; these tokens take {' or '.join(str(list(s)) for s in shapes)}")
    mask = mask if mask.shape == exists.shape else mask.reshape(1, -1)
    if not bool((mask & exists).any()):
        raise ValueError(f"the mask {region} names no cell: its truths are the cells that are asked for")
    return exists & mask


@torch.no_grad()
def region_nll(
    model: Any, tokens: Tokens, condition: Condition, asked: Tensor | None, rng: RowRNG, samples: int = 4
) -> tuple[Tensor, Tensor, bool]:
    """asked bool [K, N], or None: a random half of each row's -> (nats float64 [B], cells int64 [B] that they are of, whether exact).

    samples: hidden sets per row where it is a bound. Raises ValueError for a generator that has neither.
    """
    present = tokens.present
    chosen = _choose(present, present.sum((1, 2)) // 2, rng) if asked is None else present & asked.to(present.device)
    count = chosen.sum((1, 2))
    if isinstance(model, AnyOrder):
        rank = model.rank(chosen)
        return _nats(model.logits(tokens, condition, rank), tokens.codes, chosen), count, True
    if isinstance(model, Causal):
        return _nats(_causal(model, tokens, condition, chosen), tokens.codes, chosen), count, True
    if isinstance(model, Masked):
        return _bound(model, tokens, condition, chosen, rng, samples), count, False
    able = ", ".join(capabilities(model)) or "without capability"
    raise ValueError(f"the nll of a region needs an AnyOrder, Causal or Masked generator; {type(model).__name__} is {able}")


def _choose(present: Tensor, count: Tensor, rng: RowRNG) -> Tensor:
    """bool [B, K, N]: count[b] of each row's cells, uniformly."""
    order = rng.uniform(*present.shape[1:]).masked_fill(~present, 2.0).flatten(1)
    return (order.argsort(1).argsort(1) < count[:, None]).view_as(present) & present


def _nats(logits: Tensor, codes: Tensor, chosen: Tensor) -> Tensor:
    """Of logits [B, K, N, V], whose rows may hold anything where not chosen: nats float64 [B]."""
    log_p = logits.masked_fill(~chosen[..., None], 0.0).double().log_softmax(-1)
    return -(log_p.gather(3, codes.clamp(min=0)[..., None])[..., 0] * chosen).sum((1, 2))


def _causal(model: Causal, tokens: Tokens, condition: Condition, chosen: Tensor) -> Tensor:
    layout = model.layout
    step = layout.step.to(chosen.device)
    first = torch.where(chosen, step, layout.steps).flatten(1).amin(1)
    late = tokens.present & ~chosen & (step > first[:, None, None])
    if bool(late.any()):
        b, k, n = late.nonzero()[0].tolist()
        raise ValueError(
            f"in the {layout.name} order a region's density given the rest is known only where it comes last, and level {k}, position {n} "
            "comes after cells of this one: evaluate an any_order (exact) or a masked generator (a bound), or another region"
        )
    ids = layout.flatten(tokens.codes)
    fed = torch.cat((model.begin.to(ids.device).expand(len(ids), 1, -1), ids[:, :-1]), 1)
    cache = model.init_cache(condition, len(ids), layout.steps)
    logits = model.logits(fed, cache, torch.zeros(len(ids), dtype=torch.int64, device=ids.device))
    slot = layout.slot.to(ids.device)
    return logits[:, step.clamp(min=0), slot.clamp(min=0)]


def _bound(model: Masked, tokens: Tokens, condition: Condition, chosen: Tensor, rng: RowRNG, samples: int) -> Tensor:
    count, offset = chosen.sum((1, 2)), rng.uniform()
    cells = tokens.present.sum((1, 2)).clamp(min=1)
    total = torch.zeros(tokens.batch, dtype=torch.float64, device=count.device)
    for j in range(samples):
        number = torch.minimum(((offset + j / samples) % 1.0 * count).to(torch.int64) + 1, count)
        hidden = _choose(chosen, number, rng)
        now = Tokens(tokens.codes.masked_fill(hidden, UNKNOWN), tokens.spec, tokens.lengths)
        total += _nats(model.logits(now, condition, number / cells), tokens.codes, hidden) * count / number.clamp(min=1)
    return total / samples
