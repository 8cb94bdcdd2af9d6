"""What folders, manifests and shards of pictures share: a set that decodes when asked, in one size.

At the start only headers are read (cheap); pictures are decoded batch by batch, in the loader's workers, or all at once into memory.
What becomes of those that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.file_index import Listing, Medium, split
from gentok.data.image_files import picture_size, read_pixels, to_media
from gentok.data.indexed_dataset import IndexedDataset
from gentok.data.labels import spec_of
from gentok.data.progress import progress
from gentok.interfaces import MediaData
from gentok.types import Batch, ConditionSpec

__all__ = ["PICTURES", "ImageData", "ImageDataset"]

PICTURES = Medium(
    "picture",
    "pictures",
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    picture_size,
    head=16384,
)
"""Their header says (height, width) upright."""


class ImageData(MediaData):
    """media_shape (channels, H, W), condition_spec, train and held_out, of a Listing and another one, or a share, that is held out.

    size, channels, resize, classes, captions, max_broken, split_seed, in_memory: see conf/data/*.yaml, where users set them.
    Raises ValueError with a line.
    """

    def __init__(
        self,
        kind: str,
        listing: Listing,
        held_out: Listing | float,
        *,
        size: int | Sequence[int] | None,
        channels: int,
        resize: str,
        max_broken: float,
        split_seed: int,
        classes: Sequence[str] | None = None,
        captions: bool = False,
        caption_length: int = 128,
        in_memory: bool = False,
    ):
        if resize not in ("crop", "none"):
            raise ValueError(f"data.resize={resize!r}: 'crop' or 'none'")
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}: 1 (grey) or 3 (RGB)")
        parts = split(listing, held_out, max_broken, split_seed)
        height, width = _common_size(Counter(s for part in parts.values() for s in part.sizes or ()), size, resize, listing.where)
        self.media_shape = (channels, height, width)
        self.condition_spec = spec_of(parts, classes, captions, caption_length)
        self.train, self.held_out = (
            ImageDataset(kind, name, part, self.media_shape, self.condition_spec, max_broken, in_memory) for name, part in parts.items()
        )


class ImageDataset(IndexedDataset):
    """The pictures of one split; decoded when asked for, or kept as uint8 (`in_memory`)."""

    def __init__(
        self,
        kind: str,
        split: str,
        listing: Listing,
        media_shape: tuple[int, int, int],
        condition_spec: ConditionSpec,
        max_broken: float,
        in_memory: bool = False,
    ):
        super().__init__(kind, split, listing, condition_spec, max_broken, [media_shape])
        self.media_shape = media_shape
        self._memory: Tensor | None = None
        if in_memory:
            self._load()

    def _load(self) -> None:
        memory = torch.zeros(len(self), *self.media_shape, dtype=torch.uint8).share_memory_()
        with progress("decoding", len(self), "pictures") as advance:
            for start in range(0, len(self), 256):
                rows = range(start, min(start + 256, len(self)))
                for i in rows:
                    pixels = self.attempt(i)
                    if pixels is not None:
                        memory[i] = torch.from_numpy(pixels if pixels.dtype == "uint8" else pixels.round())
                advance(len(rows))
        self._memory = memory

    def decode(self, i: int) -> Any:
        """Array [C, H, W], uint8 or float on the scale 0..255."""
        if self._memory is not None:
            return self._memory[i].numpy()
        channels, height, width = self.media_shape
        return read_pixels(self.source.open(i), channels, (height, width), self.source.name(i))

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        import numpy as np

        index, _ = locate(draws, len(self))
        if self._memory is not None and not self._broken[index].any():
            media = self._memory[index]
        else:
            rows = [self.readable(i) for i in index.tolist()]
            index = torch.tensor([j for j, _ in rows], dtype=torch.int64)
            media = torch.from_numpy(np.stack([pixels for _, pixels in rows]))  # float where one of them is
        return Batch(to_media(media), index, self.condition(index))


def _common_size(sizes: Counter[Any], size: int | Sequence[int] | None, resize: str, where: str) -> tuple[int, int]:
    wanted = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if wanted is not None and (len(wanted) != 2 or min(wanted) < 1):
        raise ValueError(f"data.size={size}: a side in pixels, or [height, width]")
    if wanted is not None and resize == "crop":
        return wanted
    shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    if wanted is None and len(sizes) > 1:
        raise ValueError(f"the pictures in {where} have {len(sizes)} sizes: {shown}; say which one the model shall see: data.size=SIDE")
    if wanted is not None and set(sizes) != {wanted}:
        raise ValueError(f"data.resize=none demands pictures of {wanted[1]}x{wanted[0]}; {where} has {shown}; use data.resize=crop")
    return wanted or next(iter(sizes))
