"""The shape of a draft: a tree of cells that one network call verifies, the same for every row of a batch.

Node 0 is the root, the last accepted step. Every other node holds the draft of a step: those of the first
`depth` positions behind the root have `branches` siblings each, and from each of the last of these a chain goes on
to the window's end.

    branches = 2, depth = 1, window = 4        position   0     1     2     3
                                               root ─┬─── 1 ─── 3 ─── 5 ─── 7
                                                     └─── 2 ─── 4 ─── 6 ─── 8

A node predicts the position behind its own. The drafts of the last position predict nothing that is needed, so they
are not fed: what is fed are the nodes 0 .. contexts - 1. With one branch the tree is a chain.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DraftTree"]


class DraftTree:
    """A tree of drafts.

    Args:
        window: W >= 1, the positions that it covers.
        branches: siblings in the first positions; 1: a chain.
        depth: how many positions have siblings. The last position never has.

    Attributes:
        parent, position: lists [M]; position -1 for the root.
        rank: list [M], a node's number among its siblings, from 0.
        contexts: how many nodes are fed: all but those of the last position.
        children: int64 [contexts, branches], -1 where there is none.
        main: list [W], the first child's first child ...: the chain of everybody's first drafts.
    """

    def __init__(self, window: int, branches: int = 1, depth: int = 1):
        self.window, self.branches, self.depth = window, branches, min(depth, window - 1) if branches > 1 else 0
        self.parent, self.position, self.rank, self.main = [-1], [-1], [0], []
        level = [0]
        for j in range(window):
            above, level = level, []
            for node in above:
                for rank in range(branches if j < self.depth else 1):
                    level.append(len(self.parent))
                    self.parent.append(node)
                    self.position.append(j)
                    self.rank.append(rank)
            self.main.append(level[0])
        self.contexts = len(self.parent) - len(level)
        self.children = torch.full((self.contexts, max(branches, 1)), -1)
        for node in range(1, len(self.parent)):
            self.children[self.parent[node], self.rank[node]] = node

    @property
    def chain(self) -> bool:
        """Whether no node has a sibling."""
        return self.depth == 0

    def __len__(self) -> int:
        return len(self.parent)

    def positions(self, device: torch.device) -> Tensor:
        """int64 [1, M]: of the nodes, for all rows; -1 for the root."""
        return torch.tensor([self.position], device=device)

    def parents(self, device: torch.device) -> Tensor:
        """int64 [1, M]: of the nodes, for all rows; -1 for the root."""
        return torch.tensor([self.parent], device=device)

    def first_drafts(self, device: torch.device) -> Tensor:
        """int64 [1, W]: `main`, for all rows."""
        return torch.tensor([self.main], device=device)

    def children_of(self, context: Tensor) -> Tensor:
        """The children of a context of each row, int64 [b] -> [b, K]; -1 where there is none."""
        return self.children.to(context.device)[context]

    def families(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Contexts with as many children as each other, and these: int64 [n] and [1, n, K] for every number K > 0 of children."""
        count = (self.children >= 0).sum(1)
        sizes = sorted(set(count.tolist()) - {0})
        found = [(k, (count == k).nonzero()[:, 0]) for k in sizes]
        return [(contexts.to(device), self.children[None, contexts, :k].to(device)) for k, contexts in found]

    def behind(self, device: torch.device) -> Tensor:
        """int64 [contexts, W, K]: [c, j] are the contexts that predict position j if c is the last accepted one and position
        j lies behind what c predicts: of each of c's children, its first child, and so on."""
        out = torch.zeros(self.contexts, self.window, max(self.branches, 1), dtype=torch.int64)
        for context in range(self.contexts):
            out[context, self.position[context] + 1 :] = context
            for k, child in enumerate(self.children[context].tolist()):
                node = child if child >= 0 else int(self.children[context, 0])
                for j in range(self.position[context] + 2, self.window):
                    out[context, j, k] = node
                    node = int(self.children[node, 0])
        return out.to(device)
