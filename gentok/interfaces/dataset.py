"""MediaDataset: what every split of a data component is: map-style, asked for a whole batch of draws at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gentok.types import Batch, ConditionSpec

__all__ = ["MediaDataset"]


class MediaDataset:
    """The items of one split.

    A draw is the number d = epoch * len(set) + i of item i in an epoch. So whatever is chosen anew in every epoch (a crop, a token view)
    is a pure function of (seed, draw), the same on every process and after a resume. A DataLoader needs
    collate_fn=gentok.data.datasets.identity.

    Attributes:
        media_shape: (C, H, W) of images, (C, samples of the longest item) of sounds.
        condition_spec: the conditions that items have.
        description: says which items these are; it can be written as JSON.
    """

    media_shape: tuple[int, ...]
    condition_spec: ConditionSpec
    description: dict[str, Any]

    @property
    def skipped(self) -> dict[str, Any] | None:
        """What could not be read so far, and what else lies there and is not used; None: nothing can be unreadable.

        {"count", "of", "files": names of the first ones}, and where there are such "reasons" {file: reason} and "left_out" {"count",
        "reasons", "summary"}.
        """
        return None

    def agree(self, device: torch.device | str = "cpu") -> None:
        """Tells all processes what each of them has skipped; to be called by all of them.

        Args:
            device: where their collectives take tensors.
        """

    def whole(self) -> MediaDataset:
        """The same items without crops: what is encoded once and kept."""
        return self

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        """The items of `draws`, in one batch. A negative draw counts from the end, as in a list."""
        raise NotImplementedError

    def __getitem__(self, draw: int) -> Batch:
        """A batch of one row."""
        return self.__getitems__([draw])
