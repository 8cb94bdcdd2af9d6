"""The first items of a data component, for runs that test a setup (debug=one_batch, limit, overfit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gentok.data.datasets import locate
from gentok.interfaces import MediaData, MediaDataset
from gentok.types import Batch

__all__ = ["FirstItems", "Subset"]


class FirstItems(MediaDataset):
    """The first items of a set.

    Args:
        data: the set.
        items: how many; all where it has fewer.
    """

    def __init__(self, data: MediaDataset, items: int):
        self.data, self.items = data, min(items, len(data))
        self.media_shape, self.condition_spec = data.media_shape, data.condition_spec
        self.description = {**data.description, "first": self.items}

    def __len__(self) -> int:
        return self.items

    def whole(self) -> FirstItems:
        return FirstItems(self.data.whole(), self.items)

    @property
    def skipped(self) -> dict[str, Any] | None:
        return self.data.skipped

    def agree(self, device: torch.device | str = "cpu") -> None:
        self.data.agree(device)

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        return self.data.__getitems__((epoch * len(self.data) + index).tolist())


class Subset(MediaData):
    """A data component of the first items of each split of another one.

    Args:
        data: the other one.
        items: of each split, at least 1.
        overfit: whether held out are the first items of training, too.

    Raises:
        ValueError: items < 1.
    """

    def __init__(self, data: MediaData, items: int, overfit: bool = False):
        if items < 1:
            raise ValueError(f"limit_items={items}: at least 1, or null for all of them")
        self.media_shape, self.condition_spec = data.media_shape, data.condition_spec
        self.sample_rate, self.longest_item, self.band_limit = data.sample_rate, data.longest_item, data.band_limit
        self.train = FirstItems(data.train, items)
        self.held_out = self.train if overfit else FirstItems(data.held_out, items)
