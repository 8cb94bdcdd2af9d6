"""Trees of drafts whose shape is each row's own (dynamic_drafts.py, beam_drafts.py): as many places for nodes in every row, not all of
them used."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RowTrees"]


class RowTrees:
    """Trees that grow, one node after the other; what a sampler asks of them is what it asks of a DraftTree.

    Every node is fed, so none lies at the last position of the window. A place that is not used is fed as a child of the root that holds
    nothing, and is nobody's child for the rule.

    Args:
        rows: how many trees.
        nodes: M >= 1, places for nodes, the root included.
        window: W >= 1, positions; nodes have positions up to W - 2.
        branches: children that a node has at most.
        device: of the tensors.

    Attributes:
        parent, position: int64 [b, M]; position -1 for the root.
        children: int64 [b, M, branches], in the order in which they were drawn, -1 where there is none.
        count: int64 [b], nodes that are used.
    """

    chain = False

    def __init__(self, rows: int, nodes: int, window: int, branches: int, device: torch.device):
        self.window, self.contexts, self.branches = window, nodes, branches
        self.parent = torch.zeros(rows, nodes, dtype=torch.int64, device=device)
        self.parent[:, 0] = -1
        self.position = torch.zeros_like(self.parent)
        self.position[:, 0] = -1
        self.children = torch.full((rows, nodes, branches), -1, device=device)
        self.count = torch.ones(rows, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return self.contexts

    def add(self, rows: Tensor, parent: Tensor) -> Tensor:
        """Gives nodes of some trees one more child each: rows, parent int64 [n] -> the new nodes int64 [n]."""
        new, rank = self.count[rows], (self.children[rows, parent] >= 0).sum(1)
        self.parent[rows, new] = parent
        self.position[rows, new] = self.position[rows, parent] + 1
        self.children[rows, parent, rank] = new
        self.count[rows] += 1
        return new

    def positions(self, device: torch.device) -> Tensor:
        """As DraftTree.positions, of every row: int64 [b, M]."""
        return self.position

    def parents(self, device: torch.device) -> Tensor:
        """As DraftTree.parents, of every row: int64 [b, M]."""
        return self.parent

    def first_drafts(self, device: torch.device) -> Tensor:
        """As DraftTree.first_drafts, of every row: int64 [b, W]; the root behind the end."""
        out, node, rows = [], torch.zeros_like(self.count), torch.arange(len(self.count), device=device)
        for _ in range(self.window):
            node = torch.where(node >= 0, self.children[rows, node.clamp(min=0), 0], -1)
            out.append(node.clamp(min=0))
        return torch.stack(out, 1)

    def children_of(self, context: Tensor) -> Tensor:
        """As DraftTree.children_of: int64 [b] -> [b, K]."""
        return self.children[torch.arange(len(context), device=context.device), context]

    def families(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """As DraftTree.families, of every row: int64 [n] and [b, n, K], -1 where a row's context has fewer children."""
        found = (self.children >= 0).flatten(2).any(2).any(0).nonzero()[:, 0]
        return [(found, self.children[:, found])] if len(found) else []
