"""From a Condition to what a transformer takes: prefix tokens, a context for cross-attention, or one vector
for adaLN.

Each part of the ConditionSpec has its own embedding and its own learned null, which stands for a missing
class, an empty text or an empty set of vectors; rows with and without a condition mix freely in a batch, as
classifier-free guidance needs (Ho and Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentok.nn.transformer import initialise
from gentok.types import KEEP_TEXT, TEXT, Class, ClassSpec, Condition, ConditionSpec, Ids, IdsSpec, Kept, Vectors, VectorsSpec

__all__ = ["Conditioner", "Conditioned", "CONDITION_BY"]

CONDITION_BY = ("prefix", "cross", "adaln")


@dataclass
class Conditioned:
    """An embedded condition, in the one form that its model takes; without a condition all is None.

    Attributes:
        prefix: float [B, P, D], tokens that stand before the sequence.
        context: float [B, P, D], tokens for cross-attention.
        mask: bool [B, P], which of these tokens are there; None: all.
        seen: bool [B, P], which of them the sequence may read, of a prefix whose tokens read all of each other; None: all that are there.
        place: int64 [P], each token's number among `Conditioner.places`, for rotary embedding.
        vector: float [B, D], for adaLN.
    """

    prefix: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    seen: Tensor | None = None
    place: Tensor | None = None
    vector: Tensor | None = None

    def beside(self) -> dict[str, Tensor | None]:
        """What a Transformer takes beside its sequence."""
        mask = self.mask if self.seen is None else self.seen
        return {"context": self.context, "context_mask": None if self.context is None else mask, "vector": self.vector}

    def narrowed(self, mask: Tensor) -> Tensor:
        """What sees what in a prefix of P and the sequence behind it, bool [B, 1, P + T or 1, P + T] -> the same without what the
        sequence may not read of the prefix."""
        if self.prefix is None or self.seen is None:
            return mask
        prefix, mask = self.prefix.shape[1], mask.expand(-1, -1, mask.shape[3], -1).clone()
        mask[:, :, prefix:, :prefix] &= self.seen[:, None, None]
        return mask


class _ClassPart(nn.Module):
    """A class by a table, whose last row is the null."""

    def __init__(self, spec: ClassSpec, width: int):
        super().__init__()
        self.places = 1
        self.classes = len(spec.names)
        self.table = nn.Embedding(self.classes + 1, width)

    def forward(self, part: Class) -> tuple[Tensor, Tensor | None]:
        ids = torch.where(part.ids < 0, self.classes, part.ids)
        return self.table(ids)[:, None], None


class _SequencePart(nn.Module):
    """Ids by a table, or Vectors by a linear map, plus learned positions; an empty row is the null at place
    0."""

    def __init__(self, spec: IdsSpec | VectorsSpec, width: int):
        super().__init__()
        self.places = max(spec.max_length, 1)
        self.embed = nn.Embedding(len(spec.alphabet), width) if isinstance(spec, IdsSpec) else nn.Linear(spec.width, width)
        self.position = nn.Embedding(self.places, width)
        self.null = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self, part: Ids | Vectors) -> tuple[Tensor, Tensor]:
        values, mask = (part.ids, part.ids >= 0) if isinstance(part, Ids) else (part.x, part.mask)
        if values.shape[1] > self.places:
            raise ValueError(f"a condition has {values.shape[1]} symbols or vectors; this model takes at most {self.places}")
        if values.shape[1] == 0:  # there must be a place for the null
            values = values.new_zeros(values.shape[0], 1, *values.shape[2:])
            mask = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
        if isinstance(part, Ids):
            x = self.embed(values.clamp(min=0))
        else:  # what is masked may be anything, also nan
            x = self.embed(torch.where(mask[..., None], values, 0.0).to(self.embed.weight.dtype))
        x = x + self.position.weight[: values.shape[1]]
        first = torch.arange(values.shape[1], device=values.device) == 0
        empty = ~mask.any(1, keepdim=True) & first
        return torch.where(empty[..., None], self.null.to(x.dtype), x), mask | empty


class Conditioner(nn.Module):
    """Embeds conditions.

    Args:
        spec: what the model is conditioned on.
        width: D.
        by: prefix or cross: as tokens; adaln: as a vector, the mean of each part's tokens, summed over parts.

    Raises:
        ValueError: there is no such `by`.
    """

    def __init__(self, spec: ConditionSpec, width: int, by: str = "prefix"):
        super().__init__()
        if by not in CONDITION_BY:
            raise ValueError(f"condition_by must be one of {', '.join(CONDITION_BY)}; got {by!r}")
        self.spec, self.by = spec, by
        kinds = {"class": _ClassPart, "ids": _SequencePart, "vectors": _SequencePart}
        self.parts = nn.ModuleDict({f"{name}_": kinds[part.kind](part, width) for name, part in spec.parts})
        initialise(self)

    @property
    def places(self) -> int:
        """How many tokens a condition can have at most."""
        return sum(part.places for part in self.parts.values())

    def forward(self, condition: Condition, batch: int) -> Conditioned:
        """Embeds a condition; parts that it lacks are null, parts that the model does not know are ignored.

        Args:
            condition: B rows.
            batch: B.

        Returns:
            Conditioned.

        Raises:
            ValueError: a part is of another kind, has another number of rows, or is too long.
        """
        if not self.spec.parts:
            return Conditioned()
        device = next(self.parameters()).device
        tokens, masks, seen, places, offset = [], [], [], [], 0  # of every part
        kept = condition.parts.get(KEEP_TEXT)
        for name, spec in self.spec.parts:
            module = self.parts[f"{name}_"]
            part = condition.parts.get(name)
            part = (spec.parse([None] * batch, name) if part is None else part).to(device)
            if not isinstance(part, {"class": Class, "ids": Ids, "vectors": Vectors}[spec.kind]):
                raise ValueError(f"the condition {name!r} must be of kind {spec.kind}; got {type(part).__name__}")
            x, mask = module(part)
            if x.shape[0] != batch:
                raise ValueError(f"the condition {name!r} has {x.shape[0]} rows; the batch has {batch}")
            tokens.append(x)
            masks.append(mask)
            chosen = kept.to(device).mask if isinstance(kept, Kept) and name == TEXT and mask is not None else None
            seen.append(mask if chosen is None else mask & chosen[:, : x.shape[1]])
            places.append(torch.arange(x.shape[1], device=device) + offset)
            offset += module.places
        if self.by == "adaln":
            pooled = [x.mean(1) if m is None else (x * m[..., None]).sum(1) / m.sum(1, keepdim=True) for x, m in zip(tokens, seen)]
            return Conditioned(vector=torch.stack(pooled).sum(0))
        mask, read = None, None
        if any(m is not None for m in masks):
            every = [torch.ones(x.shape[:2], dtype=torch.bool, device=device) for x in tokens]
            mask, read = (torch.cat([e if m is None else m for e, m in zip(every, part)], 1) for part in (masks, seen))
        form = "prefix" if self.by == "prefix" else "context"
        return Conditioned(**{form: torch.cat(tokens, 1)}, mask=mask, seen=None if kept is None else read, place=torch.cat(places))
