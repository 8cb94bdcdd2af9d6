"""Block verification of a chain: the accepted length is chosen by the whole chain (Sun et al., arXiv 2403.10444, algorithm 2).

It accepts at least as much as one step after the other, and looks at later drafts before it stops: what is behind the stop cannot be
used again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.samplers.speculation import ratio
from gentok.types import RowRNG

__all__ = ["block_length", "block_rest"]


def _weights(p: Tensor, ids: Tensor, q: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p [b, W, V] (one-hot where nothing is drawn), the ratios' running minimum w [b, W + 1] and (w p - q)+ [b, W, V]."""
    p, q, x, drawn = p[:, :, 0], q[:, 1:, 0], ids[:, 1:, :1].clamp(min=0), drawn[:, 1:]
    sure = torch.zeros_like(q).scatter(2, x, 1.0)
    p, q = torch.where(drawn, p, sure), torch.where(drawn, q, sure)
    ratios, w = ratio(p, q, x[..., 0]), [p.new_ones(len(p))]
    for j in range(p.shape[1]):
        w.append((w[-1] * ratios[:, j]).clamp(max=1.0))
    weight = torch.stack(w, 1)
    return p, weight, (weight[:, :-1, None] * p - q).clamp(min=0)


def block_length(p: Tensor, ids: Tensor, q: Tensor, drawn: Tensor, size: Tensor, rng: RowRNG) -> Tensor:
    """The nodes of the accepted length.

    Args:
        p: float64 [b, W, 1, V], what each context predicts.
        ids: int64 [b, W + 1, 1], the drafts behind the root.
        q: float64 [b, W + 1, 1, V], their distributions.
        drawn: bool [b, W + 1, 1], the nodes that are to be drawn; the others are accepted.
        size: int64 [b], how many positions there are.
        rng: of these rows.

    Returns:
        Tensor: bool [b, W + 1, 1].
    """
    _, w, over = _weights(p, ids, q, drawn)
    rest, window = over.sum(2), p.shape[1]
    place = torch.arange(window, device=p.device)
    chance = (rest / (rest + 1 - w[:, :-1])).nan_to_num(0.0)
    chance = torch.cat((chance, w[:, -1:]), 1)[:, 1:]  # of the lengths 1 .. W
    length = place + 1
    chance = torch.where(length == size[:, None], w[:, 1:], chance) * (length <= size[:, None])
    taken = rng.uniform(window) < chance
    longest = (taken * length).amax(1)
    return torch.cat((torch.ones_like(taken[:, :1]), place < longest[:, None]), 1)[..., None]


def block_rest(p: Tensor, ids: Tensor, q: Tensor, drawn: Tensor, stop: Tensor) -> Tensor:
    """Logits [b, 1, V] of the step behind the accepted length, whose last context is stop int64 [b]. The others as in `block_length`."""
    rows = torch.arange(len(p), device=p.device)
    p, _, over = _weights(p, ids, q, drawn)
    rest = over[rows, stop]
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[rows, stop]).log()[:, None]
