"""What a generator is conditioned on, row by row: classes, symbols, vectors; and what of a text it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gentok.types.tokens import ABSENT

__all__ = ["NULL_CLASS", "Class", "Ids", "Vectors", "Kept", "Part", "Condition"]

NULL_CLASS = -1
"""The class id of "no class": what classifier-free guidance contrasts with."""


_Own = TypeVar("_Own", bound="_Numbers")


@dataclass
class _Numbers:
    """Numbers int64 [B, ...] of rows; NONE where a row has none."""

    NONE: ClassVar[int]

    ids: Tensor

    def null(self: _Own) -> _Own:
        return type(self)(torch.full_like(self.ids, self.NONE))

    def drop(self: _Own, rows: Tensor) -> _Own:
        return type(self)(self.ids.masked_fill(rows.view(-1, *[1] * (self.ids.dim() - 1)), self.NONE))

    def select(self: _Own, index: Any) -> _Own:
        return type(self)(self.ids[index])

    def to(self: _Own, device: Any) -> _Own:
        return type(self)(self.ids.to(device))

    @classmethod
    def concat(cls: type[_Own], items: Sequence[_Own]) -> _Own:
        return cls(torch.cat([i.ids for i in items]))


class Class(_Numbers):
    """Class ids int64 [B]; NULL_CLASS means no class."""

    NONE = NULL_CLASS


class Ids(_Numbers):
    """Symbol ids int64 [B, L] (characters, phonemes), ABSENT beyond each row's end; an empty row is the null condition."""

    NONE = ABSENT


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


@dataclass
class Kept:
    """Which tokens of the condition `text` media may read: mask bool [B, L], of its symbols or vectors (gentok/types/kept_text.py); all
    where a row has no text."""

    mask: Tensor

    def null(self) -> Kept:
        return Kept(torch.ones_like(self.mask))

    def drop(self, rows: Tensor) -> Kept:
        return Kept(self.mask | rows[:, None])

    def select(self, index: Any) -> Kept:
        return Kept(self.mask[index])

    def to(self, device: Any) -> Kept:
        return Kept(self.mask.to(device))

    @staticmethod
    def concat(items: Sequence[Kept]) -> Kept:
        return Kept(torch.cat([i.mask for i in items]))


Part = Class | Ids | Vectors | Kept


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
