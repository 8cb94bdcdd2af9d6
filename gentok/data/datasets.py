"""What every data set is: map-style, asked for a whole batch of *draws* at once.

A draw is a number d = epoch * len(set) + i: item i = d % len, epoch = d // len. So whatever is chosen anew in every epoch (a token view)
is a pure function of (seed, draw), the same on every process and after a resume. A set has
    __len__, __getitems__(draws) -> Batch, __getitem__(i) -> Batch of one row
    media_shape, condition_spec, description: a JSON-able dict that says which items these are
and a data component has `train`, `held_out`, `media_shape`, `condition_spec`.
A DataLoader over a set needs collate_fn=identity. A set of which training sees pieces has `whole()`, the same items without a crop.
Sets of sounds have batches with `lengths` and their component a `sample_rate` (Hz) and `longest_item` (samples), see
gentok.data.sound_dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.types import Batch, Class, Condition, ConditionSpec, fingerprint

__all__ = ["MemoryDataset", "identity", "locate", "batches", "whole", "whole_items"]


def identity(batch: Batch) -> Batch:
    """The collate_fn of every loader: sets return whole batches."""
    return batch


def locate(draws: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """draws -> index int64 [B], epoch int64 [B]. A negative draw counts from the end of the set, as in a list."""
    draws = torch.as_tensor(draws, dtype=torch.int64)
    if len(draws) and length == 0:
        raise IndexError("an item of an empty set was asked for")
    if (draws < -length).any():
        raise IndexError(f"draw {int(draws.min())} of a set of {length} items")
    draws = torch.where(draws < 0, draws + length, draws)
    return draws % length, draws // length


def whole_items(data: Any) -> Any:
    """The set without crops, where it has such: what is encoded once and kept."""
    return data.whole() if hasattr(data, "whole") else data


class MemoryDataset:
    """Items that lie in memory. media uint8 [n, C, H, W] (0..255 -> [-1, 1]) or float, used as it is; labels int64 [n] or None."""

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

    def __getitem__(self, draw: int) -> Batch:
        return self.__getitems__([draw])


def batches(data: Any, batch_size: int, limit: int | None = None, rows: Sequence[int] | None = None) -> Iterator[Batch]:
    """The items 0, 1, ..., min(len, limit) - 1 of a set, or those named in `rows`, in order, in batches of up to `batch_size`."""
    if rows is None:
        rows = range(len(data) if limit is None else min(limit, len(data)))
    for start in range(0, len(rows), batch_size):
        yield data.__getitems__(list(rows[start : start + batch_size]))


def whole(
    data: Any, limit: int | None = None, batch_size: int = 256, advance: Callable[[int], None] | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """media float [n, C, H, W] and labels int64 [n] (None without classes) of the first `limit` items, or of those named in `rows`;
    advance(n) after every batch."""
    media, labels = [], []
    for batch in batches(data, batch_size, limit, rows):
        media.append(batch.media)
        if "class" in batch.condition.parts:
            labels.append(batch.condition.parts["class"].ids)
        if advance is not None:
            advance(len(batch.index))
    return torch.cat(media), torch.cat(labels) if labels else None
