"""What guesses the next steps of a causal model, for a sampler that verifies them (speculative_decoding.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.layouts import Layout
from gentok.samplers.draft_tree import DraftTree
from gentok.samplers.request import SampleRequest
from gentok.samplers.row_trees import RowTrees
from gentok.samplers.verification import Draft, Verdict

__all__ = ["Drafter", "Progress", "one_hot"]


def one_hot(ids: Tensor, vocab: int) -> Tensor:
    """The distribution of ids that are certain: int64 [...] -> float64 [..., vocab]; ABSENT counts as id 0."""
    return torch.zeros(*ids.shape, vocab, dtype=torch.float64, device=ids.device).scatter_(-1, ids.clamp(min=0)[..., None], 1.0)


@dataclass
class Progress:
    """A batch in the order of a layout; what drafters may look at.

    Attributes:
        request: what is sampled.
        layout: the model's.
        ids: int64 [B, S, G], what is known and accepted; UNKNOWN where it is to be drawn. Written in place by the sampler alone.
        first: int64 [B], the first step with a cell to draw: position 0 of the next window; S where none is left.
        vocab: ids that a distribution has, the end of items included.
    """

    request: SampleRequest
    layout: Layout
    ids: Tensor
    first: Tensor
    vocab: int

    def window(self, rows: Tensor, width: int) -> Tensor:
        """int64 [b, W]: the steps first .. first + W - 1 of some rows, S - 1 beyond the end."""
        return (self.first[rows, None] + torch.arange(width, device=rows.device)).clamp(max=self.layout.steps - 1)


class Drafter(ABC):
    """Guesses of one batch. A sampler makes one for every batch, asks it before every call, and tells it afterwards.

    Whatever a row's guesses are, they must not depend on other rows, and `q` must be the distribution that they are
    drawn from given all that is accepted, the earlier guesses on the way to the node, and its earlier siblings. A guess
    without a distribution has q = 1 at itself.

    Args:
        progress: the batch.
        tree: the shape of its drafts. Trees of each row's own are new in every call of `propose`, with as many places for nodes.
    """

    def __init__(self, progress: Progress, tree: DraftTree | RowTrees):
        self.progress, self.tree = progress, tree

    @abstractmethod
    def propose(self, rows: Tensor) -> Draft:
        """Drafts for the steps behind what is accepted.

        Args:
            rows: int64 [b], rows that are not finished. Random numbers are drawn for these rows alone.

        Returns:
            Draft: ids that the step's level has. Those of cells that are not to be drawn are overwritten by the sampler.
        """

    def noise(self, rows: Tensor) -> Tensor | None:
        """Gumbel numbers of the window's cells, for the rule `match`: float64 [b, W, G, V]; None: the rule is another one."""
        return None

    @abstractmethod
    def observe(self, rows: Tensor, p: Tensor, verdict: Verdict, ahead: Tensor) -> None:
        """Learns from a call, after which `progress` is at the new place.

        Args:
            rows: int64 [b], those that `propose` drafted for.
            p: float64 [b, contexts, G, V], what every fed node predicts for the step behind it: filtered and guided.
            verdict: what stood of the draft.
            ahead: int64 [b], how many steps position 0 has moved.
        """
