"""EXP on clusters of the codebook: the key chooses the cluster of the id, and the id inside it is drawn freely.

An image or a sound that is encoded again gives other ids, which are often near neighbours of the first: their clusters are more often the
same. The cluster is the one with the largest log(xi_c) / P_c, where P_c is the sum of p over its ids, and the id is drawn from p inside
it: over the key and the row's own numbers it has the distribution p. The idea of marks on clusters that keep the distribution is that of
C-reweight (arXiv 2506.11371); the clusters are halves of halves of `codebook.table`, and the marks those of exp.py.

Larger clusters survive more and carry less: a mark is as strong as the entropy of the cluster. They have equally many ids, because the
rows of a trained codebook are dense where many vectors are: by k-means most ids that are used fall into a few clusters.
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


def clusters_of(table: Tensor, clusters: int) -> Tensor:
    """The cluster of each row of a table: halves of halves, each cut across the direction in which its rows differ most. In float64, the
    same on every machine up to ties in the last digits.

    Args:
        table: float [V, D].
        clusters: C in 1 .. V; they differ in size by a row or two.

    Returns:
        Tensor: int64 [V], on the CPU, in 0 .. C - 1.
    """
    x, out = table.double().cpu(), torch.zeros(len(table), dtype=torch.int64)
    waiting = [(torch.arange(len(x)), clusters)]
    done = 0
    while waiting:
        rows, count = waiting.pop()
        if count == 1:
            out[rows], done = done, done + 1
            continue
        centred = x[rows] - x[rows].mean(0)
        axis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
        axis = axis * torch.sign(axis[axis.abs().argmax()])  # the other sign would be the same axis
        ordered, left = rows[(centred @ axis).argsort(stable=True)], count // 2
        cut = len(rows) * left // count
        waiting += [(ordered[cut:], count - left), (ordered[:cut], left)]
    return out


@dataclass(frozen=True)
class Cluster(EXP, id="watermark/cluster"):
    """EXP on clusters of ids; single items keep their distribution.

    Args:
        size: ids of a cluster, about.
    """

    size: PositiveInt = 2

    def groups(self, spec: TokenSpec, codebook: Codebook | None) -> Tensor:
        if codebook is None or tuple(codebook.vocab_sizes) != spec.vocab_sizes:
            raise ValueError("the watermark cluster needs a tokenizer with a codebook of these tokens, whose rows it compares; take exp")
        counts = [-(-size // self.size) for size in spec.vocab_sizes]
        out = torch.full((spec.levels, spec.vocab + 1), max(counts))  # the end of an item is a cluster of its own
        for k, size in enumerate(spec.vocab_sizes):
            out[k, :size] = clusters_of(codebook.table(k), counts[k])
        return out

    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        assert groups is not None
        p, clusters = (logits - logits.amax(-1, keepdim=True)).exp(), int(groups.max()) + 1
        of_clusters = p.new_zeros(*p.shape[:-1], clusters).scatter_add(-1, groups, p)
        chosen = (of_clusters.log() + gumbel_of(seed, place, clusters)).argmax(-1, keepdim=True)
        return draw(logits.masked_fill(groups != chosen, -torch.inf), rng)

    def gumbel(self, seed: Tensor, place: Tensor, vocab: int) -> None:
        return None
