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

from gentok.samplers.drafter import Progress, one_hot
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft
from gentok.types import ABSENT, UNKNOWN

__all__ = ["DynamicDrafts"]


class DynamicDrafts(ModelDrafts):
    """Drafts of a causal generator whose tree is each row's own. For orders of one slot.

    Args:
        progress: the batch.
        tree: RowTrees of the size that is wanted.
        model: a Causal generator.
        filter: logits [..., V] -> those of the distribution that ids are drawn from.
        threshold: what a draft must be worth, position by position; None: one draft after the other, the most valuable first.

    Raises:
        ValueError: the model's tokens, order or condition are not those of the model that is sampled.
    """

    def __init__(self, progress: Progress, tree: RowTrees, model: Any, filter: Any, threshold: float | None = None):
        super().__init__(progress, tree, model, filter)
        self.threshold = threshold

    def propose(self, rows: Tensor) -> Draft:
        size = self.tree
        self.tree = tree = RowTrees(len(rows), len(size), size.window, size.branches, rows.device)
        grown = _Growth(self, rows, tree)
        if self.threshold is None:
            for _ in range(len(tree) - 1):
                grown.open(tree.count[:, None] - 1)
                if not grown.draw(0.0):
                    break
        else:
            grown.open(torch.zeros_like(tree.count)[:, None])
            while bool((new := grown.draw_all(self.threshold)).any()):
                grown.open(new)
        return Draft(grown.ids[..., None], grown.q[:, :, None])


class _Growth:
    """Trees that grow. ids int64 [b, M]; q float64 [b, M, V], what each was drawn from; left float64 [b, M, V], what the children of a
    node do not have of its q; worth float64 [b, M], the product of q along the path."""

    def __init__(self, drafts: DynamicDrafts, rows: Tensor, tree: RowTrees):
        self.drafts, self.rows, self.tree, progress = drafts, rows, tree, drafts.progress
        self.held = progress.ids[rows[:, None], progress.window(rows, tree.window)][..., 0]  # [b, W]
        self.limit = (progress.layout.steps - progress.first[rows]).clamp(max=tree.window - 1)  # positions that have drafts
        self.ids = torch.full((len(rows), len(tree)), ABSENT, device=rows.device)
        self.q = torch.zeros(*self.ids.shape, progress.vocab, dtype=torch.float64, device=rows.device)
        self.left, self.worth = torch.zeros_like(self.q), torch.ones_like(self.q[..., 0])
        self.opened = torch.zeros_like(self.ids, dtype=torch.bool)

    def open(self, nodes: Tensor) -> None:
        """Gives nodes int64 [b, n] the distribution of their children, where they have none."""
        tree, drafts, row = self.tree, self.drafts, torch.arange(len(self.rows), device=self.rows.device)[:, None]
        position = tree.position[row, nodes] + 1
        logits = drafts._logits(self.rows, self.ids[..., None], nodes)[:, :, 0]
        known = self.held[row, position]
        drawn = (known == UNKNOWN)[..., None]
        q = drafts.filter(logits.masked_fill(~drawn, 0.0)).softmax(-1)
        q = torch.where(drawn, q, one_hot(known, q.shape[-1]))
        ended = (self.ids[row, nodes] >= drafts.model.spec.vocab) | (position >= self.limit[:, None])
        new = (~self.opened[row, nodes])[..., None]
        self.left[row, nodes] = torch.where(new, q.masked_fill(ended[..., None], 0.0), self.left[row, nodes])
        self.opened[row, nodes] = True

    def draw(self, least: float, ready: Tensor | None = None) -> bool:
        """Draws the most valuable child of every row, where it is worth `least`; whether any was. ready: bool [b, M], whose child."""
        tree = self.tree
        able = (tree.children < 0).any(2) & self.opened if ready is None else (tree.children < 0).any(2) & ready
        value, parent = (self.worth * self.left.sum(-1) * able).max(1)
        row = ((value > 0) & (value >= least) & (tree.count < len(tree))).nonzero()[:, 0]
        if not len(row):
            return False
        parent = parent[row]
        left = self.left[row, parent]
        now = left / left.sum(-1, keepdim=True)
        request = self.drafts.progress.request
        ids = request.choose(now.log()[:, None], request.rng.rows(self.rows[row]))[:, 0]
        new = tree.add(row, parent)
        known = self.held[row, tree.position[row, new]]
        self.ids[row, new], self.q[row, new] = torch.where(known == UNKNOWN, ids, known), now
        self.worth[row, new] = self.worth[row, parent] * left.gather(1, ids[:, None])[:, 0]
        self.left[row, parent] = left.scatter(1, ids[:, None], 0.0)
        return True

    def draw_all(self, least: float) -> Tensor:
        """Draws every child of the last position's nodes that is worth `least`: the new nodes int64 [b, n], 0 where a row has fewer."""
        before, ready = self.tree.count.clone(), self.opened & (self.tree.children < 0).all(2)
        while self.draw(least, ready):
            pass
        new = before[:, None] + torch.arange(int((self.tree.count - before).max()), device=before.device)
        return torch.where(new < self.tree.count[:, None], new, 0)
