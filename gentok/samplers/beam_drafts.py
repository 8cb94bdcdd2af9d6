"""Trees of drafts from a stochastic beam: sequences that a smaller generator draws without replacement (RSD-S of Jeon et al.,
"Recursive Speculative Decoding", arXiv 2402.14160, section 3.2; the beam of Kool et al., arXiv 1903.06059).

With a standard Gumbel number g of every sequence, the n sequences of the largest log q + g are n draws without replacement. The largest
log q + g of all sequences that begin with a prefix is distributed as the log q + g of that prefix, so they are found position by position:

    G of the root is 0; the children c of a node s have   G_c = log q(c) + g_c, given that their largest is G_s
    of all children of a position the `branches` largest G are kept, and are the beam of the next one

Every node of a beam is a draft, also where none of its children is kept. The children of a node are in the order of falling G. That is the
order of draws without replacement from its q, and a rule for such draws (recursive_rejection.py) leaves the model's distribution: whether
there is one more child hangs on its G, and given all G the id of a child says nothing about itself beyond q without its earlier
siblings. In any other order, that of q for example, it would be biased.

Deviations: sequences that have ended leave the beam, and others take their place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentok.samplers.growth import Growth
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft
from gentok.types import RowRNG

__all__ = ["BeamDrafts", "gumbels_below"]


def gumbels_below(log_q: Tensor, largest: Tensor, rng: RowRNG) -> Tensor:
    """Gumbel numbers with locations log_q, given what the largest of them is (Kool et al., appendix B.3).

    Args:
        log_q: float64 [b, n, V], -inf where an id is impossible.
        largest: float64 [b, n], -inf where there is no node.
        rng: of these b rows.

    Returns:
        Tensor: float64 [b, n, V], at most `largest`, which one of them is; -inf where there is none.
    """
    free = log_q + rng.gumbel(*log_q.shape[1:])
    below = (free - free.amax(-1, keepdim=True)).nan_to_num(nan=-torch.inf)
    log_rest = torch.where(below > -math.log(2), (-below.expm1()).log(), (-below.exp()).log1p())  # log(1 - exp(below))
    v = largest[..., None] - free + log_rest
    moved = largest[..., None] - v.clamp(min=0) - (-v.abs()).exp().log1p()
    return torch.where((free > -torch.inf) & (largest > -torch.inf)[..., None], moved, -torch.inf)


class BeamDrafts(ModelDrafts):
    """Drafts of a causal generator by a stochastic beam, a tree of each row's own. For orders of one slot.

    Arguments are those of ModelDrafts; `tree` holds RowTrees of the size that is wanted, whose branches are the width of the beam.
    """

    def propose(self, rows: Tensor) -> Draft:
        size, rng = self.tree, self.progress.request.rng
        self.tree = tree = RowTrees(len(rows), len(size), size.window, size.branches, rows.device)
        grown = Growth(self, rows, tree)
        nodes = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
        largest = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
        for _ in range(tree.window - 1):
            grown.open(nodes)
            row = (largest > -torch.inf).any(1).nonzero()[:, 0]  # a row that is done draws no more numbers, whatever the others do
            at = row[:, None], nodes[row]
            log_q = grown.worth[at].log()[..., None] + grown.left[at].log()  # [n, beam, V]
            scores = gumbels_below(log_q, largest[row], rng.rows(rows[row])).flatten(1)
            best = scores.topk(min(tree.branches, scores.shape[1]), 1)
            width = best.values.shape[1]
            nodes, largest = nodes.new_zeros(len(rows), width), largest.new_full((len(rows), width), -torch.inf)
            largest[row] = best.values
            if not bool((best.values > -torch.inf).any()):
                break
            parent, ids = best.indices // log_q.shape[2], best.indices % log_q.shape[2]
            for k in range(width):
                kept = (best.values[:, k] > -torch.inf).nonzero()[:, 0]
                nodes[row[kept], k] = grown.add(row[kept], at[1][kept, parent[kept, k]], ids[kept, k])
        return grown.draft()
