"""Trees of drafts that grow where the smaller generator is sure of itself (DySpec: Xiong et al., arXiv 2410.11744).

A draft is accepted about as often as its q says. So the next draft of a node's step is worth

    the product of q along the path to the node  x  the part of the node's q that its children do not have yet,

the chance that verification comes to it. Children are draws without replacement, and a rule for such siblings (recursive_rejection.py)
leaves the model's distribution: which node is given its next draft depends on drafts that are there already, and never on the draft itself.

    dynamic    the most valuable draft is made, one after the other, until there are `nodes`: the paper's heap
    layered    position by position, drafts that are worth `threshold` at least: one call of the generator per position
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentok.samplers.drafter import Progress
from gentok.samplers.growth import Growth
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft

__all__ = ["DynamicDrafts"]


class DynamicDrafts(ModelDrafts):
    """Drafts of a causal generator whose tree is each row's own. For orders of one slot.

    Args:
        progress: the batch.
        tree: RowTrees of the size that is wanted.
        model: a Causal generator.
        filter: logits [..., V] -> those of the distribution that ids are drawn from.
        threshold: what a draft must be worth, position by position; None: one draft after the other, the most valuable first.
        kept: as in ModelDrafts.

    Raises:
        ValueError: the model's tokens, order or condition are not those of the model that is sampled.
    """

    def __init__(
        self, progress: Progress, tree: RowTrees, model: Any, filter: Any, threshold: float | None = None, kept: Tensor | None = None
    ):
        super().__init__(progress, tree, model, filter, kept=kept)
        self.threshold = threshold

    def propose(self, rows: Tensor) -> Draft:
        size = self.tree
        self.tree = tree = RowTrees(len(rows), len(size), size.window, size.branches, rows.device)
        grown = _ByWorth(self, rows, tree)
        if self.threshold is None:
            for _ in range(len(tree) - 1):
                grown.open(tree.count[:, None] - 1)
                if not grown.draw(0.0):
                    break
        else:
            grown.open(torch.zeros_like(tree.count)[:, None])
            while bool((new := grown.draw_all(self.threshold)).any()):
                grown.open(new)
        return grown.draft()


class _ByWorth(Growth):
    """Growth where it is worth most."""

    def draw(self, least: float, ready: Tensor | None = None) -> bool:
        """Draws the most valuable child of every row, where it is worth `least`; whether any was. ready: bool [b, M], whose child."""
        tree = self.tree
        able = (tree.children < 0).any(2) & self.opened if ready is None else (tree.children < 0).any(2) & ready
        value, parent = (self.worth * self.left.sum(-1) * able).max(1)
        row = ((value > 0) & (value >= least) & (tree.count < len(tree))).nonzero()[:, 0]
        if not len(row):
            return False
        parent = parent[row]
        left, request = self.left[row, parent], self.drafts.progress.request
        ids = request.choose((left / left.sum(-1, keepdim=True)).log()[:, None], request.rng.rows(self.rows[row]))[:, 0]
        self.add(row, parent, ids)
        return True

    def draw_all(self, least: float) -> Tensor:
        """Draws every child of the last position's nodes that is worth `least`: the new nodes int64 [b, n], 0 where a row has fewer."""
        before, ready = self.tree.count.clone(), self.opened & (self.tree.children < 0).all(2)
        while self.draw(least, ready):
            pass
        new = before[:, None] + torch.arange(int((self.tree.count - before).max()), device=before.device)
        return torch.where(new < self.tree.count[:, None], new, 0)
