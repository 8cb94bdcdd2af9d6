"""Clusters of a codebook's rows: which ids stand for nearly the same thing.

    kmeans          Lloyd's iterations from a k-means++ start (Arthur and Vassilvitskii, SODA 2007)
    balanced        the same, with clusters of equal size as far as V / M divides: in every iteration rows and centres are matched
                    stably, each row to the nearest centre that has no nearer rows for all its places (Gale and Shapley, 1962)
    agglomerative   Ward's: of all pairs, the two clusters are merged that raise the summed squared distance from the means least
                    (Ward, 1963), by chains of nearest neighbours (Murtagh, 1983), in O(V) memory
    random          equal sizes by chance: what clustering is compared with

All are deterministic given the rows and the seed, compute in float64 on the CPU, and use every label 0 .. M - 1; labels are numbered
by the smallest id that they hold, so that with M = V the labels are the ids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gentok.rng import RowRNG

__all__ = ["CLUSTERINGS", "cluster"]

ITERATIONS = 100
"""Of k-means at most."""
MATCHINGS = 30
"""Of balanced k-means."""
_CHUNK = 1 << 24  # distances that are computed at once


def cluster(rows: Tensor, count: int, method: str = "kmeans", seed: int = 0) -> Tensor:
    """Clusters rows.

    Args:
        rows: float [V, D].
        count: M, 1 to V.
        method: one of CLUSTERINGS.
        seed: of what is random in it.

    Returns:
        int64 [V] on the CPU: the label of each row, 0 .. M - 1, each of which occurs.

    Raises:
        ValueError: an unknown method, more clusters than rows, or a row that is not finite.
    """
    if method not in CLUSTERINGS:
        raise ValueError(f"clustering must be one of {', '.join(CLUSTERINGS)}; got {method!r}")
    if not 1 <= count <= len(rows):
        raise ValueError(f"{count} clusters of {len(rows)} ids: choose 1 to {len(rows)}")
    rows = rows.detach().cpu().double()
    if not bool(rows.isfinite().all()):
        raise ValueError("the codebook's table holds NaN or infinite numbers, so its ids have no clusters: its weights are damaged")
    labels = torch.arange(len(rows)) if count == len(rows) else CLUSTERINGS[method](rows, count, RowRNG([seed]))
    _, labels = labels.unique(return_inverse=True)
    first = torch.full((count,), len(rows)).scatter_reduce(0, labels, torch.arange(len(rows)), "amin")
    return first.argsort().argsort()[labels]


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared, float64 [V, M]."""
    step = max(1, _CHUNK // len(centres))
    return torch.cat([torch.cdist(part, centres).square() for part in rows.split(step)])


def _means(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """float64 [M, D], of clusters that all have rows."""
    sums = torch.zeros(count, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows)
    return sums / labels.bincount(minlength=count)[:, None]


def _start(rows: Tensor, count: int, rng: RowRNG) -> Tensor:
    """Centres of k-means++: each a row, drawn by its squared distance to the centres before it."""
    chosen = int(rng.uniform() * len(rows))
    nearest, taken = torch.full((len(rows),), torch.inf, dtype=rows.dtype), []
    for _ in range(count):
        taken.append(chosen)
        nearest = torch.minimum(nearest, (rows - rows[chosen]).square().sum(1))
        weight = nearest if bool(nearest.any()) else torch.ones_like(nearest)  # fewer different rows than centres
        cumulative = weight.cumsum(0)
        chosen = int(torch.searchsorted(cumulative, rng.uniform() * cumulative[-1], right=True).clamp(max=len(rows) - 1))
    return rows[taken]


def _fill_empty(labels: Tensor, distance: Tensor, count: int) -> Tensor:
    """Every cluster without rows takes the row that lies farthest from its centre, of clusters with more than one."""
    for empty in (labels.bincount(minlength=count) == 0).nonzero()[:, 0].tolist():
        sizes = labels.bincount(minlength=count)
        row = int(torch.where(sizes[labels] > 1, distance, -1.0).argmax())
        labels[row], distance[row] = empty, 0.0
    return labels


def _kmeans(rows: Tensor, count: int, rng: RowRNG) -> Tensor:
    centres, labels = _start(rows, count, rng), torch.full((len(rows),), -1)
    for _ in range(ITERATIONS):
        distance, nearest = _distances(rows, centres).min(1)
        nearest = _fill_empty(nearest, distance, count)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = _means(rows, labels, count)
    return labels


def _balanced(rows: Tensor, count: int, rng: RowRNG) -> Tensor:
    """The best of all iterations: a stable matching does not promise that the summed distance to the means falls."""
    labels, best, least = _kmeans(rows, count, rng), None, torch.inf
    places = torch.full((count,), len(rows) // count) + (torch.arange(count) < len(rows) % count)
    for _ in range(MATCHINGS):
        labels = _stable_match(_distances(rows, _means(rows, labels, count)), places)
        cost = float((rows - _means(rows, labels, count)[labels]).square().sum())
        if best is None or cost < least:
            best, least = labels, cost
    return best


def _stable_match(distance: Tensor, places: Tensor) -> Tensor:
    """int64 [V]: the centre of each row, given distances [V, M] and as many places [M] as rows. Every row asks its nearest centre; a
    centre keeps the nearest ones of those who ask, and each of the others asks the next centre that has a place or a farther row."""
    ordered, order = distance.sort(dim=1, stable=True)
    asks, every, number = torch.zeros(len(distance), dtype=torch.int64), torch.arange(len(distance)), torch.arange(len(places))
    while True:
        centre, near = order[every, asks], ordered[every, asks]
        nearest = near.argsort(stable=True)
        by_centre = nearest[centre[nearest].argsort(stable=True)]  # the rows of centre 0, nearest first, then those of centre 1, ...
        sizes = centre.bincount(minlength=len(places))
        rank = torch.empty_like(asks)
        rank[by_centre] = every - (sizes.cumsum(0) - sizes)[centre[by_centre]]
        refused = rank >= places[centre]
        if not bool(refused.any()):
            return centre
        farthest = torch.zeros_like(distance[0]).scatter_reduce(0, centre[~refused], near[~refused], "amax")
        farthest = torch.where(sizes >= places, farthest, torch.inf)
        open_to = (ordered[refused] < farthest[order[refused]]) & (number > asks[refused, None])
        asks[refused] = open_to.to(torch.int64).argmax(1)


def _agglomerative(rows: Tensor, count: int, rng: RowRNG) -> Tensor:
    """The chain grows from a cluster to its nearest neighbour until two are each other's: those are merged. Merging in this order gives
    the same tree as merging the closest pair first."""
    n = len(rows)
    means, sizes = rows.numpy().copy(), np.ones(n)
    live = np.ones(n, bool)
    merges, heights, chain = [], [], []
    while len(merges) < n - 1:
        if not chain:
            chain.append(int(live.argmax()))
        last = chain[-1]
        cost = np.square(means - means[last]).sum(1) * (sizes * sizes[last] / (sizes + sizes[last]))
        cost[~live], cost[last] = np.inf, np.inf
        nearest = int(cost.argmin())
        if len(chain) > 1 and cost[chain[-2]] <= cost[nearest]:
            nearest = chain[-2]
        if len(chain) > 1 and nearest == chain[-2]:
            a, b = sorted((last, nearest))
            merges.append((a, b))
            heights.append(cost[nearest])
            means[a] = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
            sizes[a], live[b] = sizes[a] + sizes[b], False
            chain = chain[:-2]
        else:
            chain.append(nearest)
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for at in np.argsort(heights, kind="stable")[: n - count]:
        a, b = (root(i) for i in merges[at])
        parent[max(a, b)] = min(a, b)
    return torch.tensor([root(i) for i in range(n)])


def _random(rows: Tensor, count: int, rng: RowRNG) -> Tensor:
    return rng.permutation(len(rows))[0] % count


CLUSTERINGS: dict[str, Callable[[Tensor, int, RowRNG], Tensor]] = {
    "kmeans": _kmeans, "balanced": _balanced, "agglomerative": _agglomerative, "random": _random,
}  # fmt: skip
"""name -> (rows float64 [V, D], M < V, random numbers of one row) -> labels int64 [V]."""
