"""EXP on clusters of the codebook: the key chooses the cluster of the id, and the id inside it is drawn freely.

An image or a sound that is encoded again gives other ids, which are often near neighbours of the first: their clusters are more often the
same. The cluster is the one with the largest log(xi_c) / P_c, where P_c is the sum of p over its ids, and the id is drawn from p inside
it: over the key and the row's own numbers it has the distribution p. The idea of marks on clusters that keep the distribution is that of
C-reweight (arXiv 2506.11371); the clusters are those of k-means over `codebook.table`, and the marks those of exp.py.

Fewer clusters survive more, and carry less: a mark is as strong as the entropy of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.samplers.draws import draw
from gentok.settings import PositiveInt
from gentok.types import TokenSpec
from gentok.watermarks.base import gumbel_of
from gentok.watermarks.exp import EXP

__all__ = ["Cluster", "clusters_of"]


def clusters_of(table: Tensor, clusters: int, rounds: int = 50) -> Tensor:
    """The cluster of each row of a table: k-means in float64 that starts from rows far from each other, the same on every machine up to
    ties in the last digits.

    Args:
        table: float [V, D].
        clusters: C; with C >= V every row is its own.
        rounds: of Lloyd's algorithm at most.

    Returns:
        Tensor: int64 [V], on the CPU, in 0 .. C - 1.
    """
    x = table.double().cpu()
    if clusters >= len(x):
        return torch.arange(len(x))
    centres = [x[(x - x.mean(0)).square().sum(1).argmin()]]
    near = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for _ in range(1, clusters):
        near = torch.minimum(near, (x - centres[-1]).square().sum(1))
        centres.append(x[near.argmax()])
    means = torch.stack(centres)
    of = torch.cdist(x, means).argmin(1)
    for _ in range(rounds):
        counts = torch.bincount(of, minlength=clusters)[:, None]
        means = torch.where(counts > 0, torch.zeros_like(means).index_add(0, of, x) / counts.clamp(min=1), means)
        before, of = of, torch.cdist(x, means).argmin(1)
        if torch.equal(before, of):
            break
    return of


@dataclass(frozen=True)
class Cluster(EXP, id="watermark/cluster"):
    """EXP on clusters of ids; single items keep their distribution.

    Args:
        clusters: of each level, C >= 2.
    """

    clusters: PositiveInt = 16

    def groups(self, spec: TokenSpec, codebook: Codebook | None) -> Tensor:
        if codebook is None or tuple(codebook.vocab_sizes) != spec.vocab_sizes:
            raise ValueError("the watermark cluster needs a tokenizer with a codebook of these tokens, whose rows it compares; take exp")
        out = torch.full((spec.levels, spec.vocab + 1), self.clusters)  # the end of an item is a cluster of its own
        for k, size in enumerate(spec.vocab_sizes):
            out[k, :size] = clusters_of(codebook.table(k), self.clusters)
        return out

    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        assert groups is not None
        p = (logits - logits.amax(-1, keepdim=True)).exp()
        of_clusters = p.new_zeros(*p.shape[:-1], self.clusters + 1).scatter_add(-1, groups, p)
        chosen = (of_clusters.log() + gumbel_of(seed, place, self.clusters + 1)).argmax(-1, keepdim=True)
        return draw(logits.masked_fill(groups != chosen, -torch.inf), rng)

    def gumbel(self, seed: Tensor, place: Tensor, vocab: int) -> None:
        return None
