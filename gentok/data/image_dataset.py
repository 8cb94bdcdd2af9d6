"""What folders, manifests and shards of images share: a set that decodes when asked, in one size.

At the start only headers are read (cheap); images are decoded batch by batch, in the loader's workers, or all at once into memory.
What becomes of those that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.file_index import FileIndex, MediaType, split
from gentok.data.image_decoding import IMAGE_SUFFIXES
from gentok.data.image_files import image_size, read_pixels, to_media
from gentok.data.indexed_dataset import IndexedDataset
from gentok.data.labels import Conditions, spec_of
from gentok.data.progress import progress
from gentok.data.source_options import Found, LabelOptions, MediumOptions, divide
from gentok.interfaces import MediaData
from gentok.settings import PositiveInt
from gentok.types import Batch

__all__ = ["IMAGES", "ImageData", "ImageDataset", "ImageOptions"]

IMAGES = MediaType("image", "images", IMAGE_SUFFIXES, image_size)
"""Their header says (height, width) upright."""


@dataclass(frozen=True)
class ImageOptions(MediumOptions):
    """Options of images; in memory they are uint8.

    Attributes:
        size: side in pixels, or [height, width], of what the model sees; null: the images' own, which must then be one and the same.
        channels: 3 (RGB) or 1 (grey).
        resize: "crop" scales until the shorter side fits and cuts around the centre; "none" demands images of exactly `size`.

    Raises:
        ValueError: another number of channels, or another word as `resize`.
    """

    size: PositiveInt | Sequence[PositiveInt] | None = None
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "none"] = "crop"


class ImageData(MediaData):
    """Two sets of images, in one size.

    Args:
        place: where the images are.
        source: the options of a source, which knows how to find them.
        given: the values of the fields of `source` and of ImageOptions.

    Attributes:
        kind: what the description of the sets calls them.

    Raises:
        ValueError: nothing is left for a split, or the images do not have the size that `options` demand.
    """

    kind: ClassVar[str]

    def __init__(self, place: Any, source: type[LabelOptions], given: Mapping[str, Any]):
        finder, options = divide(given, source, ImageOptions)
        found: Found = finder.find(place, IMAGES)
        parts = split(found.index, found.held_out, options.max_broken, options.split_seed)
        sizes = Counter(size for part in parts.values() for size in part.known_sizes)
        self.media_shape = (options.channels, *_common_size(sizes, options.size, options.resize, found.index.where))
        self.condition_spec = spec_of(parts, found.classes, found.caption_length, found.text_encoder)
        conditions = {name: Conditions(self.condition_spec, part, found.text_encoder) for name, part in parts.items()}
        how = (options.max_broken, options.in_memory)
        self.train, self.held_out = (
            ImageDataset(self.kind, name, part, self.media_shape, conditions[name], *how) for name, part in parts.items()
        )


class ImageDataset(IndexedDataset):
    """The images of one split.

    Args:
        kind, split, index, conditions, max_broken: those of IndexedDataset.
        media_shape: (channels, height, width) of what a batch holds.
        in_memory: whether they are decoded now and kept as uint8, instead of when they are asked for.
    """

    def __init__(
        self,
        kind: str,
        split: str,
        index: FileIndex,
        media_shape: tuple[int, int, int],
        conditions: Conditions,
        max_broken: float,
        in_memory: bool = False,
    ):
        super().__init__(kind, split, index, conditions, max_broken, [media_shape])
        self.media_shape = media_shape
        self._memory: Tensor | None = None
        if in_memory:
            self._load()

    def _load(self) -> None:
        memory = torch.zeros(len(self), *self.media_shape, dtype=torch.uint8).share_memory_()
        with progress("decoding", len(self), "images") as advance:
            for start in range(0, len(self), 256):
                rows = range(start, min(start + 256, len(self)))
                self.source.ahead(rows)
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
            if self._memory is None:
                self.source.ahead(index.tolist())
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
        raise ValueError(f"the images in {where} have {len(sizes)} sizes: {shown}; say which one the model shall see: data.size=SIDE")
    if wanted is not None and set(sizes) != {wanted}:
        raise ValueError(f"data.resize=none demands images of {wanted[1]}x{wanted[0]}; {where} has {shown}; use data.resize=crop")
    return wanted or next(iter(sizes))
