"""Is an item marked by a key? The p-value: how often a random key fits it at least as well.

The statistic of an item is the smallest sum of `cost` over its cells, of all n starts, or its edit distance from the key
(alignment.py). Under the hypothesis that the item has nothing to do with the key, the secret key and R random ones are
exchangeable, whatever the item is, so that

    p = (1 + keys that fit as well) / (R + 1)

is right at any length (P(p <= a) <= a, and p is uniform on 1/(R + 1), ..., 1 where sums do not tie). Without the ones it could be 0, which
no finite number of keys can show. The sums of all starts are one circular correlation per id, done by Fourier transforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.rng import RowRNG
from gentok.types import Tokens
from gentok.watermarks.alignment import edit_distances
from gentok.watermarks.base import KeyMark

__all__ = ["Found", "detect", "statistics"]

AT_ONCE = 1 << 22
"""Numbers of the key that are computed together."""


@dataclass(frozen=True)
class Found:
    """What a detector says of one item.

    Attributes:
        p: the p-value.
        tokens: cells that it was found from.
        statistic: the smallest sum of costs, or the edit distance, over `tokens`.
    """

    p: float
    tokens: int
    statistic: float


def statistics(mark: KeyMark, seeds: Tensor, codes: Tensor) -> Tensor:
    """The statistic of one item for several keys.

    Args:
        mark: its watermark; its own key is not looked at.
        seeds: int64 [R], of the keys.
        codes: int64 [K, N]; cells below 0 do not count.

    Returns:
        Tensor: float64 [R], sums of costs.
    """
    level, position = (codes >= 0).nonzero().unbind(1)
    n = mark.length
    kinds, of = mark.symbols(codes)[level, position].unique(return_inverse=True)
    place = (position * mark.levels + level) % n
    counts = torch.zeros(len(kinds), n, dtype=torch.float64, device=codes.device)
    counts.index_put_((of, place), torch.ones_like(of, dtype=torch.float64), accumulate=True)
    spectrum, places, out = torch.fft.rfft(counts).conj(), torch.arange(n, device=codes.device), []
    for part in seeds.to(codes.device).split(max(1, AT_ONCE // max(counts.numel(), 1))):
        cost = mark.watermark.cost(part[:, None, None], places, kinds[:, None], mark.vocab).expand(len(part), *counts.shape)
        sums = cost.sum(2) @ counts.sum(1, keepdim=True) if n == 1 else torch.fft.irfft((torch.fft.rfft(cost) * spectrum).sum(1), n)
        out.append(sums.amin(1))
    return torch.cat(out)


def detect(mark: KeyMark, tokens: Tokens, keys: int = 999, seed: int = 0, gap: float | None = None) -> list[Found]:
    """Asks each item of a batch whether it is marked.

    Args:
        mark: the watermark, with the key that is asked for.
        tokens: B items.
        keys: R, random keys to compare with; p is at least 1 / (R + 1).
        seed: of the random keys, which are not secret.
        gap: above 0: the statistic is the smallest edit distance (alignment.py) with this gap penalty, which finds items again of which
            positions were lost or put in between; None: the smallest sum of costs.

    Returns:
        One answer per item; of an item without cells p is 1.
    """
    random = RowRNG.of(seed, [0]).fork("watermark keys").words(keys)[0].abs()
    seeds, found = torch.cat((torch.tensor([mark.seed]), random)), []
    for codes in tokens.codes:
        cells = int((codes >= 0).sum())
        if not cells:
            found.append(Found(1.0, 0, 0.0))
            continue
        sums = statistics(mark, seeds, codes) if gap is None else edit_distances(mark, seeds, codes, gap)
        own, *others = sums.split((1, keys))
        as_good = int((others[0] <= own + 1e-9).sum())  # rounding of the transforms; ties count against the mark
        found.append(Found((1 + as_good) / (1 + keys), cells, float(own) / cells))
    return found
