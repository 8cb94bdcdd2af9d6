"""What a generator is conditioned on, row by row: classes, symbols, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gentok.types.tokens import ABSENT

__all__ = ["NULL_CLASS", "Class", "Ids", "Vectors", "Part", "Condition"]

NULL_CLASS = -1
"""The class id of "no class": what classifier-free guidance contrasts with."""


@dataclass
class Class:
    """Class ids int64 [B]; NULL_CLASS means no class."""

    ids: Tensor

    def null(self) -> Class:
        return Class(torch.full_like(self.ids, NULL_CLASS))

    def drop(self, rows: Tensor) -> Class:
        return Class(self.ids.masked_fill(rows, NULL_CLASS))

    def select(self, index: Any) -> Class:
        return Class(self.ids[index])

    def to(self, device: Any) -> Class:
        return Class(self.ids.to(device))

    @staticmethod
    def concat(items: Sequence[Class]) -> Class:
        return Class(torch.cat([i.ids for i in items]))


@dataclass
class Ids:
    """Symbol ids int64 [B, L] (characters, phonemes), ABSENT beyond each row's end; an empty row is the null condition."""

    ids: Tensor

    def null(self) -> Ids:
        return Ids(torch.full_like(self.ids, ABSENT))

    def drop(self, rows: Tensor) -> Ids:
        return Ids(self.ids.masked_fill(rows[:, None], ABSENT))

    def select(self, index: Any) -> Ids:
        return Ids(self.ids[index])

    def to(self, device: Any) -> Ids:
        return Ids(self.ids.to(device))

    @staticmethod
    def concat(items: Sequence[Ids]) -> Ids:
        return Ids(torch.cat([i.ids for i in items]))


@dataclass
class Vectors:
    """Vectors x float [B, L, D] of a frozen encoder, mask bool [B, L] True where there is one; an empty row is the null condition."""

    x: Tensor
    mask: Tensor

    def null(self) -> Vectors:
        return Vectors(self.x, torch.zeros_like(self.mask))

    def drop(self, rows: Tensor) -> Vectors:
        return Vectors(self.x, self.mask & ~rows[:, None])

    def select(self, index: Any) -> Vectors:
        return Vectors(self.x[index], self.mask[index])

    def to(self, device: Any) -> Vectors:
        return Vectors(self.x.to(device), self.mask.to(device))

    @staticmethod
    def concat(items: Sequence[Vectors]) -> Vectors:
        return Vectors(torch.cat([i.x for i in items]), torch.cat([i.mask for i in items]))


Part = Class | Ids | Vectors


@dataclass
class Condition:
    """Named parts, one row per item. No parts: an unconditional model."""

    parts: dict[str, Part] = field(default_factory=dict)

    def _map(self, function: Any) -> Condition:
        return Condition({name: function(part) for name, part in self.parts.items()})

    def null(self) -> Condition:
        """The same rows with every part dropped: the other side of classifier-free guidance."""
        return self._map(lambda part: part.null())

    def drop(self, rows: Tensor) -> Condition:
        """Every part of the rows where `rows` (bool [B]) is True becomes null, as in training with condition dropout."""
        return self._map(lambda part: part.drop(rows))

    def rows(self, index: Any) -> Condition:
        return self._map(lambda part: part.select(index))

    def to(self, device: Any) -> Condition:
        return self._map(lambda part: part.to(device))

    def keys(self, batch: int) -> list[bytes]:
        """For each of the B rows bytes that are equal where all parts of two rows are."""
        columns = [value.detach().cpu().contiguous() for part in self.parts.values() for value in vars(part).values()]
        rows = [column.flatten(1).view(torch.uint8) if column.dim() > 1 else column[:, None].view(torch.uint8) for column in columns]
        return [bytes(row) for row in torch.cat(rows, 1).tolist()] if rows else [b""] * batch

    @staticmethod
    def concat(conditions: Sequence[Condition]) -> Condition:
        """Rows of several conditions with the same parts, one after the other."""
        first = conditions[0]
        parts: dict[str, Any] = {name: type(part).concat([c.parts[name] for c in conditions]) for name, part in first.parts.items()}  # type: ignore[misc]
        return Condition(parts)
