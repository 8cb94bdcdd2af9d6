"""Maps that a frozen network has made before, found again by the image.

An image's key is a linear hash of its bytes, key = sum_i byte_i * m_i mod 2^64 with odd pseudo-random m_i (SplitMix64): 64 bits, the same
on any device. So a map is never served to another image, whatever order, subset or augmentation the images come in; what
is not there is computed.

A mirrored image is served the mirrored map. That is not what the network would have given (its strided convolutions pad one side alone),
but it is what a mirrored image means, and halves the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gentok.rng import RowRNG

__all__ = ["MapMemory", "Shared", "image_keys"]

T = TypeVar("T")


class Shared(Generic[T]):
    """Holds something that copies of its owner share (moving averages copy whole models)."""

    def __init__(self, value: T | None = None):
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[T]:
        return self


def image_keys(media: Tensor) -> Tensor:
    """media float [B, C, H, W] in [-1, 1] -> int64 [B], a function of the images' bytes."""
    count = media[0].numel()
    multipliers = (RowRNG(torch.zeros(1, dtype=torch.int64)).words(count)[0] | 1).to(media.device)
    bytes_ = (media.float() * 127.5 + 127.5).round().clamp(0, 255).long().flatten(1)
    return (bytes_ * multipliers).sum(1)


class MapMemory:
    """Maps of images, found by what the images are.

    Called with media float [B, C, H, W] and a function that makes maps, it returns float32 [B, D, h, w].

    Args:
        keys: int64 [n], of the images.
        maps: float16 numpy [n, D, h, w], usually mapped from a file.

    Attributes:
        served: how many were found.
    """

    def __init__(self, keys: Tensor, maps: Any):
        if len(keys) != len(maps):
            raise ValueError(f"{len(keys)} keys came with {len(maps)} maps")
        self.keys, self.order = keys.sort()
        self.maps, self.served = maps, 0

    def _rows(self, keys: Tensor) -> Tensor:
        """int64 [B]: the map of each key, -1 where there is none."""
        if not len(self.keys):
            return torch.full_like(keys, -1)
        at = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[at] == keys, self.order[at], -1)

    def __call__(self, media: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        keys, mirrored = image_keys(media).cpu(), image_keys(media.flip(3)).cpu()
        plain, mirrored = self._rows(keys), self._rows(mirrored)
        found, row = (plain >= 0) | (mirrored >= 0), torch.where(plain >= 0, plain, mirrored)
        if not found.any():
            return make(media)
        kept = torch.from_numpy(self.maps[row[found].numpy()]).to(media.device).float()
        flip = (plain < 0)[found].to(media.device)
        kept = torch.where(flip[:, None, None, None], kept.flip(3), kept)
        self.served += int(found.sum())
        if found.all():
            return kept
        out = kept.new_empty(len(media), *kept.shape[1:])
        found = found.to(media.device)
        out[found], out[~found] = kept, make(media[~found]).float()
        return out
