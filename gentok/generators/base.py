"""The capabilities of generators: all that a sampler may use of one.

A generator subclasses every capability that it has; whether a sampler fits is `issubclass`, known before
anything is built. Ids >= V_k have logit -inf by construction. Logits may be of any floating dtype; samplers
draw in float64. The base class is in capability.py, the capability over the scales of a pyramid in scales.py,
those of models of vectors in continuous.py, that of residual codes in cumulative_masked.py.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from gentok.generators.capability import Capability, capabilities
from gentok.generators.continuous import Entities, MaskedVectors
from gentok.generators.cumulative_masked import CumulativeMasked
from gentok.generators.jumps import Jumps
from gentok.generators.scales import NextScale
from gentok.layouts import Layout
from gentok.types import Condition, Tokens

__all__ = [
    "AnyOrder", "Capability", "Causal", "CumulativeMasked", "Entities", "Jumps", "Masked", "MaskedVectors", "NextScale", "Refines",
    "SelfSpeculative", "capabilities",
]  # fmt: skip


class Causal(Capability):
    """A model that emits the steps of a layout in order, all slots of a step together.

    Fed steps are numbered from 0: fed step 0 is `begin`, fed step i > 0 holds the ids of layout step i - 1,
    and the logits at fed step i are the distribution of layout step i. ids are codes, ABSENT in slots that
    hold no cell (or a dropped one).

    Attributes:
        layout: S steps of G slots.
        exact_slots: whether the slots of a step are independent, given the steps before, in this model's own
            distribution: then drawing them together is exact.
        begin: int64 [G], the ids of fed step 0 (special ids of the model, never seen inside Tokens).
        moves_rows: whether `take` and `put` work, so that rows may join and leave a batch.
        ends: whether items end by themselves. Logits then have one id more, spec.vocab, which is possible at
            level 0 alone: the item ends before that cell's position. It is never fed: what lies beyond an
            item's end is ABSENT.
    """

    layout: Layout
    exact_slots: bool
    begin: Tensor
    ends: bool = False
    moves_rows: bool = False

    def feed(self, codes: Tensor) -> Tensor:
        """What is fed to predict all of codes int64 [B, K, N]: int64 [B, S, G], `begin` and all steps but the
        last."""
        flat = self.layout.flatten(codes)
        return torch.cat((self.begin.to(flat.device).expand(len(flat), 1, -1), flat[:, :-1]), 1)

    @abstractmethod
    def init_cache(self, condition: Condition, batch: int, capacity: int) -> Any:
        """Makes a cache.

        Args:
            condition: B rows.
            batch: B.
            capacity: how many fed steps it holds at most, scratch steps of trees included; a condition's
                prefix does not count.

        Returns:
            A cache, of a type of the model's own.
        """

    @abstractmethod
    def logits(self, ids: Tensor, cache: Any, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """Feeds some steps; commits nothing.

        Args:
            ids: int64 [B, S, G], of the fed steps at[b] .. at[b] + S - 1 of each row.
            cache: from `init_cache`.
            at: int64 [B]; rows may stand at different steps. What a row fed before `at` must be committed,
                what lies at or behind `at` is overwritten. It may lie on the CPU, where reading it does not
                wait for the device.
            parents: int64 [B, S] makes S a tree: parents[b, s] < s is the index within this call of the step
                before s, -1 for the last committed one; fed step numbers then follow depth. None: the steps
                follow one another.

        Returns:
            float [B, S, G, V], or V + 1 where items end by themselves.
        """

    @abstractmethod
    def commit(self, cache: Any, at: Tensor, path: Tensor | None = None) -> None:
        """Keeps steps of the last `logits` call and forgets its others.

        Args:
            cache: from `init_cache`.
            at: int64 [B], where that call stood.
            path: int64 [B, P], the indices s within that call to keep, in order, -1 beyond each row's end;
                they become the fed steps at[b], at[b] + 1, ... None: the steps lie in order, and the next
                call's `at` decides how many of them count.
        """

    def keep_ids(self, cache: Any, kept: Tensor) -> None:
        """Told that some ids alone will be looked at: the logits of others may be -inf from now on, which saves their work. A generator
        that has none to save does nothing.

        Args:
            cache: from `init_cache`.
            kept: bool [K, V], of every level.
        """

    def take(self, cache: Any, rows: Tensor) -> Any:
        """A cache of some rows, of their own memory; a row that is named several times is there as often.

        Args:
            cache: from `init_cache`.
            rows: int64 [b].
        """
        raise NotImplementedError(f"{type(self).__name__} cannot move the rows of its cache (moves_rows)")

    def put(self, cache: Any, rows: Tensor, other: Any) -> None:
        """Rows of a cache become those of another one.

        Args:
            cache: from `init_cache`; it is changed.
            rows: int64 [b].
            other: of b rows, of the same capacity and of conditions as long.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot move the rows of its cache (moves_rows)")


class Masked(Capability):
    """A model that predicts every UNKNOWN cell from the others at once.

    Attributes:
        uses_time: whether `t` matters; a sampler may call a time-free network only after a change.
    """

    rowwise = ("logits",)
    uses_time: bool

    @abstractmethod
    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            tokens: codes int64 [B, K, N] with UNKNOWN cells.
            condition: B rows.
            t: float [B] in [0, 1], the masked share; None: as the tokens have it.

        Returns:
            float [B, K, N, V]; unspecified at known cells.
        """


class AnyOrder(Capability):
    """A model of every joint distribution p(asked cells | visible cells), as a product of conditionals in an
    order of the asked ones.

    Orders are grids: rank int64 [B, K, N] is 0 for the visible block (its present and its ABSENT cells, in no
    order), and positive, and different within a row, for the cells that are asked, in their order.
    """

    rowwise = ("logits", "conditionals")

    def rank(self, asked: Tensor) -> Tensor:
        """The model's own order of the asked cells.

        Args:
            asked: bool [B, K, N].

        Returns:
            int64 [B, K, N]: 1, 2, ... from left to right, at a position the coarser level first; 0 elsewhere.
        """
        by_position = asked.transpose(1, 2)
        return (by_position.flatten(1).cumsum(1).view_as(by_position) * by_position).transpose(1, 2)

    @abstractmethod
    def logits(self, tokens: Tokens, condition: Condition, rank: Tensor, seen: Tensor | None = None) -> Tensor:
        """The distribution of every cell of positive rank given the cells of lower rank.

        Args:
            tokens: codes int64 [B, K, N]. No cell is given the UNKNOWN ones, whatever their rank.
            condition: B rows.
            rank: int64 [B, K, N].
            seen: int64 [B], given the cells of rank <= seen[b] alone; that of rank seen[b] + 1 is then the
                same as without.

        Returns:
            float [B, K, N, V]; unspecified at rank 0.
        """

    def conditionals(self, tokens: Tokens, condition: Condition, rank: Tensor, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        """`logits` of some cells alone; a network may leave out what these do not depend on.

        Args:
            tokens, condition, rank, seen: as in `logits`.
            cells: int64 [B, Q], indices into a row's K N cells.

        Returns:
            float [B, Q, V].
        """
        logits = self.logits(tokens, condition, rank, seen).flatten(1, 2)
        return logits.gather(1, cells[..., None].expand(-1, -1, logits.shape[2]))


class SelfSpeculative(Capability):
    """A model that drafts all UNKNOWN cells at once and verifies drafts with a few layers more, which read
    them in an order."""

    rowwise = ("draft", "verify")

    @abstractmethod
    def draft(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Tensor]:
        """Predicts every UNKNOWN cell given the known ones.

        Args:
            tokens: codes int64 [B, K, N] with UNKNOWN cells.
            condition: B rows.

        Returns:
            Logits float [B, K, N, V], and what `verify` needs, float [B, ...].
        """

    @abstractmethod
    def verify(self, state: Tensor, tokens: Tokens, rank: Tensor) -> Tensor:
        """The distribution of every cell of positive rank given what `draft` saw and the cells of lower rank.

        Args:
            state: from `draft`.
            tokens: codes int64 [B, K, N]. No cell is given the UNKNOWN ones.
            rank: int64 [B, K, N], 0 for the cells that `draft` saw, 1, 2, ... for the others in order.

        Returns:
            float [B, K, N, V]; at rank 1 the same as the draft, unspecified at rank 0.
        """


class Refines(Capability):
    """A model of coarse labels of the codes, and of the codes given all labels, which are then independent of one
    another: p(codes) = sum over labels of p(labels) product over cells of p(code | labels).

    Attributes:
        coarse: the model of the labels, which are Tokens of its own spec on the same cells.
        members: whether a code is always one of its label's cluster. Then the codes determine the labels, and the sum
            has a single term.
    """

    coarse: Causal
    members: bool

    @property
    def ends(self) -> bool:
        """Whether items end by themselves: where their labels do."""
        return self.coarse.ends

    @property
    def moves_rows(self) -> bool:
        """Whether rows may join and leave a batch: where their labels may."""
        return self.coarse.moves_rows

    @abstractmethod
    def labels(self, codes: Tensor) -> Tensor:
        """The label of every code.

        Args:
            codes: int64 [B, K, N].

        Returns:
            int64 [B, K, N]; what is below 0 stays.
        """

    @abstractmethod
    def logits(self, labels: Tokens, condition: Condition) -> Tensor:
        """The distribution of every code given all labels.

        Args:
            labels: codes int64 [B, K, N] of the spec of `coarse`, none UNKNOWN.
            condition: B rows.

        Returns:
            float [B, K, N, V]; unspecified where a label is ABSENT.
        """
