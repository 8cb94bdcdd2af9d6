"""Drafts that no network makes: what followed the same id before, and what is above or before a cell.

`TokenTable` keeps, for every id, the ids that were most probable behind it when it was last scored, of all nodes of
a call, refused ones too (Token Recycling, Luo et al., arXiv 2408.08696). Each row has a table of its own, empty at
its start: a row does not depend on others. `Neighbours` guesses that a cell repeats the one above it, or before it.
Guesses have no distribution, so their q is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.drafter import Drafter, Progress, one_hot
from gentok.samplers.guesses import guess_sources
from gentok.samplers.verification import Draft, Verdict
from gentok.types import UNKNOWN

__all__ = ["Neighbours", "TokenTable"]


class Neighbours(Drafter):
    """Every cell repeats another one, drafted or accepted, in the whole window.

    Args:
        progress: the batch.
        tree: a chain.
        guess: of guesses.GUESSES.
    """

    def __init__(self, progress: Progress, tree: DraftTree, guess: str):
        super().__init__(progress, tree)
        self.sources = guess_sources(guess, progress.layout).to(progress.ids.device)
        self.sizes = progress.layout.vocab.to(progress.ids.device).clamp(min=1)
        self.random = progress.request.rng.fork("guesses").words(*progress.layout.level.shape).abs() % self.sizes

    def propose(self, rows: Tensor) -> Draft:
        progress, ids = self.progress, self.progress.ids[rows].clone()
        steps, row = progress.window(rows, self.tree.window), torch.arange(len(rows), device=rows.device)
        for j in range(self.tree.window):
            step = steps[:, j]
            source = self.sources[step]
            guess = ids[row[:, None], source[..., 0].clamp(min=0), source[..., 1].clamp(min=0)]
            usable = (source[..., 0] >= 0) & (guess >= 0) & (guess < self.sizes[step])
            ids[row, step] = torch.where(ids[row, step] == UNKNOWN, torch.where(usable, guess, self.random[rows, step]), ids[row, step])
        place = torch.tensor([max(j, 0) for j in self.tree.position], device=rows.device)
        drafts = ids[row[:, None], steps][:, place]
        return Draft(drafts, one_hot(drafts, progress.vocab))

    def observe(self, rows: Tensor, p: Tensor, verdict: Verdict, ahead: Tensor) -> None:
        """Nothing is learned: what is accepted is looked up."""


class TokenTable(Drafter):
    """What was most probable behind an id when it was last scored. For orders of one slot.

    Args:
        progress: the batch.
        tree: the shape of its drafts; it keeps as many ids as the tree has branches.

    Attributes:
        after: int64 [B, V + 1, K]: the last row is for the beginning of an item. Ids that were not seen yet are followed by themselves.
    """

    def __init__(self, progress: Progress, tree: DraftTree):
        super().__init__(progress, tree)
        vocab = progress.request.model.spec.vocab
        self.start, self.keep = vocab, min(tree.branches, int(progress.layout.vocab.min().clamp(min=1)))
        own = torch.arange(vocab + 1, device=progress.ids.device)[:, None] + torch.arange(self.keep, device=progress.ids.device)
        self.after = (own % vocab).expand(len(progress.ids), -1, -1).clone()
        self.sizes = progress.layout.vocab.to(progress.ids.device)[:, 0].clamp(min=1)
        self.drafted: Tensor | None = None

    def propose(self, rows: Tensor) -> Draft:
        progress, tree = self.progress, self.tree
        held, first = progress.ids[rows], progress.first[rows]
        last = held[torch.arange(len(rows), device=rows.device), (first - 1).clamp(min=0), 0]
        ids = held.new_zeros(len(rows), len(tree))
        ids[:, 0] = torch.where((first > 0) & (last >= 0), last, self.start)
        size = self.sizes[progress.window(rows, tree.window)]  # [b, W]
        for node in range(1, len(tree)):
            rank = min(tree.rank[node], self.keep - 1)
            ids[:, node] = self.after[rows, ids[:, tree.parent[node]], rank] % size[:, tree.position[node]]
        self.drafted = ids
        return Draft(ids[..., None].clone(), one_hot(ids.clamp(max=progress.vocab - 1), progress.vocab)[:, :, None])

    def observe(self, rows: Tensor, p: Tensor, verdict: Verdict, ahead: Tensor) -> None:
        best = p[:, :, 0, : self.start].topk(self.keep, -1).indices  # [b, C, K]
        for context in reversed(range(self.tree.contexts)):  # where an id was scored twice, the node nearer to the root is kept
            self.after[rows, self.drafted[:, context]] = best[:, context]
