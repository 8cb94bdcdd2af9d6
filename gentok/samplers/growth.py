"""Trees of drafts under growth: what the children of each node are drawn from, and how a node gets its next child."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.samplers.drafter import one_hot
from gentok.samplers.model_drafts import ModelDrafts
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft
from gentok.types import ABSENT, UNKNOWN

__all__ = ["Growth"]


class Growth:
    """Trees that grow by the distributions of a smaller generator.

    Args:
        drafts: the drafter, whose generator predicts.
        rows: int64 [b], the rows that the trees are of.
        tree: with roots alone.

    Attributes:
        ids: int64 [b, M], of the nodes.
        q: float64 [b, M, V], what each was drawn from, given its earlier siblings.
        left: float64 [b, M, V], what the children of a node do not have yet of its distribution: 0 before `open`, where nothing may
            follow, and where nothing is left.
        worth: float64 [b, M], the product of q along the path.
        opened: bool [b, M], the nodes whose children have a distribution.
    """

    def __init__(self, drafts: ModelDrafts, rows: Tensor, tree: RowTrees):
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
        logits = drafts.logits(self.rows, self.ids[..., None], nodes)[:, :, 0]
        known = self.held[row, position]
        drawn = (known == UNKNOWN)[..., None]
        q = drafts.filter(logits.masked_fill(~drawn, 0.0)).softmax(-1)
        q = torch.where(drawn, q, one_hot(known, q.shape[-1]))
        ended = (self.ids[row, nodes] >= drafts.model.spec.vocab) | (position >= self.limit[:, None])
        new = (~self.opened[row, nodes])[..., None]
        self.left[row, nodes] = torch.where(new, q.masked_fill(ended[..., None], 0.0), self.left[row, nodes])
        self.opened[row, nodes] = True

    def add(self, row: Tensor, parent: Tensor, ids: Tensor) -> Tensor:
        """Gives nodes of some trees their next child: row, parent, ids int64 [n], a row at most once -> the new nodes int64 [n]."""
        tree, left = self.tree, self.left[row, parent]
        new = tree.add(row, parent)
        known = self.held[row, tree.position[row, new]]
        self.ids[row, new], self.q[row, new] = torch.where(known == UNKNOWN, ids, known), left / left.sum(-1, keepdim=True)
        self.worth[row, new] = self.worth[row, parent] * left.gather(1, ids[:, None])[:, 0]
        self.left[row, parent] = left.scatter(1, ids[:, None], 0.0)
        return new

    def draft(self) -> Draft:
        """The nodes that there are now."""
        return Draft(self.ids[..., None], self.q[:, :, None])
