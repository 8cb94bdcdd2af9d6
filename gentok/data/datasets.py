"""What reads data sets (gentok.interfaces.MediaDataset): draws, batches in order; and a set in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.interfaces import MediaDataset
from gentok.types import Batch, Class, Condition, ConditionSpec, fingerprint

__all__ = ["MemoryDataset", "identity", "locate", "batches", "whole"]


def identity(batch: Batch) -> Batch:
    """The collate_fn of every loader, since sets return whole batches."""
    return batch


def locate(draws: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """What draws of a set of `length` items stand for.

    Args:
        draws: numbers epoch * length + index; a negative one counts from the end of the set, as in a list.
        length: items of the set.

    Returns:
        index int64 [B] and epoch int64 [B].

    Raises:
        IndexError: a draw below -length, or one of an empty set.
    """
    draws = torch.as_tensor(draws, dtype=torch.int64)
    if len(draws) and length == 0:
        raise IndexError("an item of an empty set was asked for")
    if (draws < -length).any():
        raise IndexError(f"draw {int(draws.min())} of a set of {length} items")
    draws = torch.where(draws < 0, draws + length, draws)
    return draws % length, draws // length


class MemoryDataset(MediaDataset):
    """Items that lie in memory.

    Args:
        media: uint8 [n, C, H, W], 0..255 for [-1, 1], or float, which is used as it is.
        labels: int64 [n], ids of classes; None: there are no classes.
        condition_spec: the conditions that items have.
        description: says which items these are; their number and a hash of their content are added.

    Raises:
        ValueError: not one label per item.
    """

    def __init__(self, media: Tensor, labels: Tensor | None, condition_spec: ConditionSpec, description: dict[str, Any]):
        if labels is not None and len(labels) != len(media):
            raise ValueError(f"{len(media)} items came with {len(labels)} labels; give one label per item")
        self.media, self.labels, self.condition_spec = media, labels, condition_spec
        self.media_shape = tuple(media.shape[1:])
        content = fingerprint(media, *([] if labels is None else [labels]))
        self.description = {**description, "items": len(media), "content": content}

    def __len__(self) -> int:
        return len(self.media)

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, _ = locate(draws, len(self))
        media = self.media[index]
        if media.dtype == torch.uint8:
            media = media.float() / 127.5 - 1.0
        parts = {} if self.labels is None else {"class": Class(self.labels[index])}
        return Batch(media, index, Condition(parts))


def batches(data: MediaDataset, batch_size: int, limit: int | None = None, rows: Sequence[int] | None = None) -> Iterator[Batch]:
    """Items of a set, in order.

    Args:
        data: the set.
        batch_size: items of a batch; the last one may have fewer.
        limit: how many items; None: all.
        rows: the items' numbers, instead of the first `limit` ones.
    """
    if rows is None:
        rows = range(len(data) if limit is None else min(limit, len(data)))
    for start in range(0, len(rows), batch_size):
        yield data.__getitems__(list(rows[start : start + batch_size]))


def whole(
    data: MediaDataset, limit: int | None = None, batch_size: int = 256, advance: Callable[[int], None] | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Items of a set, in memory.

    Args:
        data: the set.
        limit, batch_size, rows: those of `batches`.
        advance: called after every batch with the number of its items.

    Returns:
        media float [n, C, H, W], and labels int64 [n] or, without classes, None.
    """
    media, labels = [], []
    for batch in batches(data, batch_size, limit, rows):
        media.append(batch.media)
        if "class" in batch.condition.parts:
            labels.append(batch.condition.parts["class"].ids)
        if advance is not None:
            advance(len(batch.index))
    return torch.cat(media), torch.cat(labels) if labels else None
