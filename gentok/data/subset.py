"""The first items of a data component: for runs that look for mistakes (debug=one_batch, limit, overfit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gentok.data.datasets import locate, whole_items
from gentok.interfaces import MediaData
from gentok.types import Batch

__all__ = ["FirstItems", "Subset"]


class FirstItems:
    """The first `items` of a set, with their numbers; all of them where there are fewer."""

    def __init__(self, data: Any, items: int):
        self.data, self.items = data, min(items, len(data))
        self.media_shape, self.condition_spec = data.media_shape, data.condition_spec
        self.description = {**data.description, "first": self.items}

    def __len__(self) -> int:
        return self.items

    def whole(self) -> FirstItems:
        """Without crops, where the set has such."""
        return FirstItems(whole_items(self.data), self.items)

    @property
    def skipped(self) -> dict[str, Any] | None:
        return getattr(self.data, "skipped", None)

    def agree(self, device: Any = "cpu") -> None:
        if hasattr(self.data, "agree"):
            self.data.agree(device)

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        return self.data.__getitems__((epoch * len(self.data) + index).tolist())

    def __getitem__(self, draw: int) -> Batch:
        return self.__getitems__([draw])


class Subset(MediaData):
    """A data component of the first `items` of each split of `data`; overfit: both splits are the first items of training.

    Raises ValueError where items < 1.
    """

    def __init__(self, data: Any, items: int, overfit: bool = False):
        if items < 1:
            raise ValueError(f"limit_items={items}: at least 1, or null for all of them")
        self.media_shape, self.condition_spec = data.media_shape, data.condition_spec
        self.sample_rate, self.longest_item, self.band_limit = data.sample_rate, data.longest_item, data.band_limit
        self.train = FirstItems(data.train, items)
        self.held_out = self.train if overfit else FirstItems(data.held_out, items)
