"""The capabilities of generators: all that a sampler may use of one.

A generator subclasses every capability that it has (and torch.nn.Module); whether a sampler fits is `issubclass`, known before anything is
built. Ids >= V_k have logit -inf by construction. Logits may be of any floating dtype; samplers draw in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from gentok.flow.mixture import Mixture
from gentok.layouts import Layout
from gentok.types import Condition, ConditionSpec, RowRNG, Tokens, TokenSpec

__all__ = ["AnyOrder", "Capability", "Causal", "CumulativeMasked", "Masked", "SelfSpeculative", "capabilities", "random_rank"]


class Capability(ABC):
    """What every generator shows to every sampler."""

    spec: TokenSpec
    condition_spec: ConditionSpec
    branches: int = 1
    """Rows that a network computes for one row of the sampler; guidance computes two."""


class Causal(Capability):
    """A model that emits the steps of a layout in order, each step's slots together.

    Fed steps are numbered from 0: fed step 0 is `begin`, fed step i > 0 holds the ids of layout step i - 1, and the logits at fed
    step i are the law of layout step i. ids are codes, ABSENT in slots that hold no cell (or a dropped one).
    """

    layout: Layout
    exact_slots: bool
    """Whether the slots of a step are independent given the steps before in this model's own law: then drawing them together is exact."""
    begin: Tensor
    """int64 [G]: the ids of fed step 0 (specials of the model, never seen inside Tokens)."""
    ends: bool = False
    """Whether items end by themselves. Logits then have one id more, spec.vocab, which is possible at level 0 alone: the item is
    as long as that cell's position, which it has no more. It is never fed: what lies beyond an item's end is ABSENT."""

    @abstractmethod
    def init_cache(self, condition: Condition, batch: int, capacity: int) -> Any:
        """A cache for `batch` rows and up to `capacity` fed steps (scratch steps of trees included); prefixes are inside and free."""

    @abstractmethod
    def logits(self, ids: Tensor, cache: Any, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """ids int64 [B, S, G], the fed steps at[b] .. at[b] + S - 1 of each row -> [B, S, G, V].

        at int64 [B]: rows may stand at different steps; what a row fed before `at` must be committed, what lies at or behind `at`
        is overwritten. parents int64 [B, S] makes S a tree: parents[b, s] < s is the index within this call of the step before s, -1 for
        the last committed one; fed step numbers then follow depth. Commits nothing.
        """

    @abstractmethod
    def commit(self, cache: Any, at: Tensor, path: Tensor | None = None) -> None:
        """Keep steps of the last `logits` call, which stood at `at`, and forget its others.

        path None: the steps lie in order, and how many of them count is decided by the next call's `at` (nothing is moved).
        path int64 [B, P]: the indices s within that call to keep, in order, -1 beyond each row's end; they become the fed steps
        at[b], at[b] + 1, ...
        """


class Masked(Capability):
    """A model that predicts every UNKNOWN cell from the others at once."""

    uses_time: bool
    """Whether `t` matters; a time-free network may be called only after a change."""

    @abstractmethod
    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """tokens with UNKNOWN cells, t float [B] in [0, 1] (share masked) or None -> [B, K, N, V]; rows of known cells are unspecified."""


class CumulativeMasked(Capability):
    """A model of residual codes that predicts, at every position, the sum of the code vectors of its UNKNOWN levels."""

    @abstractmethod
    def mixture(self, tokens: Tokens, condition: Condition) -> Mixture:
        """tokens with UNKNOWN cells -> a law of that sum for every position; unspecified where a position has no hole."""

    @abstractmethod
    def requantize(self, z: Tensor, tokens: Tokens) -> Tokens:
        """z float [B, N, D], such sums -> tokens whose UNKNOWN cells hold the codes that z is quantised to; all other cells stay."""


class AnyOrder(Capability):
    """A model of every joint law p(asked cells | visible cells), as a product of conditionals in an order of the asked ones.

    Orders are grids: rank int64 [B, K, N] is 0 for the visible block (its present and its ABSENT cells, in no order), and positive, and
    different within a row, for the cells that are asked, in their order.
    """

    def rank(self, asked: Tensor) -> Tensor:
        """The model's own order of the asked cells, bool [B, K, N] -> int64 [B, K, N]: 1, 2, ... from left to right, at a position the
        coarser level first; 0 elsewhere."""
        turned = asked.transpose(1, 2)
        return (turned.flatten(1).cumsum(1).view_as(turned) * turned).transpose(1, 2)

    @abstractmethod
    def logits(self, tokens: Tokens, condition: Condition, rank: Tensor, seen: Tensor | None = None) -> Tensor:
        """The law of every cell of positive rank given the cells of lower rank: -> [B, K, N, V]; rows of rank 0 are unspecified.

        seen int64 [B]: given those of rank <= seen[b] alone; the law of rank seen[b] + 1 is then the same as without. UNKNOWN cells are
        given to none, whatever their rank.
        """

    def laws(self, tokens: Tokens, condition: Condition, rank: Tensor, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        """`logits` of some cells alone: int64 [B, Q], indices into a row's K N cells -> [B, Q, V]. A network may leave out what these
        laws do not depend on."""
        logits = self.logits(tokens, condition, rank, seen).flatten(1, 2)
        return logits.gather(1, cells[..., None].expand(-1, -1, logits.shape[2]))


class SelfSpeculative(Capability):
    """A model that drafts all UNKNOWN cells at once and verifies drafts with a few layers more, which read them in an order."""

    @abstractmethod
    def draft(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Tensor]:
        """tokens with UNKNOWN cells -> (the law of each of them given the others, [B, K, N, V]; what `verify` needs, float [B, ...])."""

    @abstractmethod
    def verify(self, state: Tensor, tokens: Tokens, rank: Tensor) -> Tensor:
        """The law of every cell of positive rank given what `draft` saw and the cells of lower rank: -> [B, K, N, V].

        rank int64 [B, K, N]: 0 for the cells that `draft` saw, 1, 2, ... for the others in order; UNKNOWN cells are given to none. The law
        of rank 1 is the draft's. Rows of rank 0 are unspecified.
        """


def random_rank(asked: Tensor, rng: RowRNG) -> Tensor:
    """A uniformly random order of each row's asked cells: bool [B, K, N] -> int64 [B, K, N], 1, 2, ... there and 0 elsewhere."""
    key = rng.uniform(*asked.shape[1:]).masked_fill(~asked, 2.0).flatten(1)
    return (key.argsort(1).argsort(1).view(asked.shape) + 1) * asked


def capabilities(model: Any) -> tuple[str, ...]:
    """Names of the capabilities of a generator or of its class."""
    cls = model if isinstance(model, type) else type(model)
    return tuple(c.__name__ for c in Capability.__subclasses__() if issubclass(cls, c))
