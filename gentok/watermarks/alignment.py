"""The edit distance of an item from a key: of ids that were lost or put in between, the rest is found again.

Kuditipudi et al., arXiv 2307.15593, section 2.4, the simple Levenshtein cost of ids y and places xi of a key, with d_0 the cost of a
watermark (log(1 - xi_y) of EXP, |u - rank| of ITS) and a gap penalty gamma:

    d(y, xi) = min { d(y[1:], xi[1:]) + d_0(y[0], xi[0]),   d(y[1:], xi) + gamma,   d(y, xi[1:]) + gamma }
    d(y, []) = gamma |y|,   d([], xi) = gamma |xi|

The statistic of an item is the smallest d(y, w) over all windows w of the key. A step is a position of the item with
all its levels, and the K places of the key that belong to it, so that the levels stay together. One dynamic programme
finds the smallest over all windows at once: it begins and ends at any place for nothing,

    D_0[j] = 0,    E_i[j] = min(D_{i-1}[j-1] + d_0(y_i, xi_j), D_{i-1}[j] + gamma),    D_i[j] = min_{l <= j} E_i[l] + gamma (j - l)

and the last minimum is a running one. The p-value (detection.py) is right for any statistic.

Deviations: windows of every length and the whole item, where the paper has windows and parts of the item of one length, which costs a
programme for each start; so gamma must be above 0, where the paper takes 0 for EXP. The key is a ring, which is unrolled twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentok.watermarks.base import KeyMark, PlacedWatermark

__all__ = ["edit_distances"]

AT_ONCE = 1 << 22
"""Numbers of the programme that are computed together."""


def edit_distances(mark: KeyMark, seeds: Tensor, codes: Tensor, gap: float) -> Tensor:
    """The smallest edit distance of one item from any window of several keys.

    Args:
        mark: its watermark; its own key is not looked at.
        seeds: int64 [R], of the keys.
        codes: int64 [K, N]; cells below 0 do not count, and positions between others that have none cost nothing.
        gap: gamma, above 0.

    Returns:
        Tensor: float64 [R].

    Raises:
        ValueError: the watermark has no places.
    """
    if not isinstance(mark.watermark, PlacedWatermark):
        name = type(mark.watermark).__name__
        raise ValueError(f"alignment=edit moves ids along the places of a key, and {name} has one for all: set alignment=shift")
    level, position = (codes >= 0).nonzero().unbind(1)
    first, last = int(position.min()), int(position.max())
    symbols = mark.symbols(codes)[level, position]
    kinds, of = symbols.unique(return_inverse=True)
    n, rings = mark.length, math.gcd(mark.levels, mark.length)
    places = torch.arange(n, device=codes.device)
    steps = (torch.arange(rings)[:, None] + mark.levels * torch.arange(2 * n // rings)).to(codes.device) % n  # [rings, 2 n / rings]
    out = []
    for part in seeds.to(codes.device).split(max(1, AT_ONCE // (n * max(len(kinds), 4)))):
        cost = mark.watermark.cost(part[:, None, None], places, kinds[:, None], mark.vocab).expand(len(part), len(kinds), n)
        ramp = gap * torch.arange(steps.shape[1] + 1, dtype=torch.float64, device=codes.device)
        least = torch.zeros(len(part), rings, len(ramp), dtype=torch.float64, device=codes.device)  # D_i[j], of windows that end before j
        for p in range(first, last + 1):
            here = torch.zeros(len(part), n, dtype=torch.float64, device=codes.device)
            for k, kind in zip(level[position == p].tolist(), of[position == p].tolist()):
                here += cost[:, kind].roll(-k, 1)  # the cell of level k lies k places behind its position's
            moved = torch.cat((torch.full_like(least[..., :1], torch.inf), least[..., :-1] + here[:, steps]), 2)
            least = (torch.minimum(moved, least + gap) - ramp).cummin(2).values + ramp
        out.append(least.flatten(1).amin(1))
    return torch.cat(out)
