"""Images of noise, in memory, for measurements of speed that shall not depend on a data set. Nothing can be learnt from them."""

from __future__ import annotations

import torch

from gentok.data.datasets import MemoryDataset
from gentok.interfaces import MediaData
from gentok.rng import RowRNG
from gentok.settings import NonNegativeInt, PositiveInt
from gentok.types import ClassSpec, ConditionSpec

__all__ = ["NoiseImages"]

CLASSES = tuple("0123456789")
_MOST = 1 << 31
"""Numbers of all images, which are drawn in double precision."""


class NoiseImages(MediaData, id="data/noise"):
    """Uniform bytes in ten classes, one after the other; media_shape (channels, size, size).

    Args:
        items: images to train on.
        held_out: images that are held out.
        size: side, in pixels.
        channels: of an image.
        seed: of the bytes.

    Raises:
        ValueError: a number below 1.
    """

    condition_spec = ConditionSpec((("class", ClassSpec(CLASSES)),))

    def __init__(
        self,
        items: PositiveInt = 4096,
        held_out: PositiveInt = 256,
        size: PositiveInt = 32,
        channels: PositiveInt = 3,
        seed: NonNegativeInt = 0,
    ):
        self.media_shape = (channels, size, size)
        if (items + held_out) * channels * size * size > _MOST:
            raise ValueError(f"data.items={items}, held_out={held_out}, size={size}, channels={channels}: more than fits into memory")
        for name, first, count in (("train", 0, items), ("held_out", items, held_out)):
            media = torch.empty(count, *self.media_shape, dtype=torch.uint8)
            for rows in torch.arange(count).split(1024):  # the numbers are float64
                media[rows] = (RowRNG.of(seed, first + rows).uniform(*self.media_shape) * 256).to(torch.uint8)
            about = {"data": "noise", "split": name, "seed": seed}
            setattr(self, name, MemoryDataset(media, torch.arange(count) % len(CLASSES), self.condition_spec, about))
