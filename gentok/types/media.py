"""Media as programs have them: PIL images, arrays of bytes, float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

__all__ = ["as_batch", "as_media"]


def as_media(item: Any, channels: int | None = None) -> Tensor:
    """An item as it is trained on.

    Args:
        item: a PIL image; an array or tensor uint8 [H, W], [H, W, C] or [C, H, W] of 0..255; or float [C, H, W] of an image or [C, T] of a
            sound, in [-1, 1].
        channels: 1 or 3 turns PIL images grey or into RGB; None: as they are.

    Returns:
        float32 [C, H, W] or [C, T].

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(item, Image):
        mode = {1: "L", 3: "RGB"}.get(channels or 0, item.mode if item.mode in ("L", "RGB") else "RGB")
        item = np.asarray(item if item.mode == mode else item.convert(mode))
    fits = isinstance(item, Tensor) or (isinstance(item, np.ndarray) and item.dtype.kind in "fiu")
    media = torch.as_tensor(item) if fits else None
    if media is None or media.dim() not in (2, 3) or not (media.dtype == torch.uint8 or media.is_floating_point()):
        came = f"{media.dtype} {list(media.shape)}" if media is not None else type(item).__name__
        raise ValueError(f"media must be a PIL image, uint8 [H, W, C], or float [C, H, W] or [C, T] in [-1, 1]; got {came}")
    if media.dtype == torch.uint8:
        media = media.unsqueeze(-1) if media.dim() == 2 else media
        media = media.permute(2, 0, 1) if media.shape[-1] in (1, 3) else media
        return media.float() / 127.5 - 1.0
    low, high = media.aminmax()
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"float media lie in [-1, 1]; got {float(low):.4g} to {float(high):.4g}: scale them, or give uint8 of 0..255")
    return media.float()


def as_batch(media: Any, shape: Sequence[int]) -> Tensor:
    """Media in one batch.

    Args:
        media: an item that `as_media` takes, a list of them, or a batch: float [B, C, ...] in [-1, 1], or uint8 [B, H, W, C] or
            [B, C, H, W].
        shape: (C, H, W) of images, (C,) or (C, samples) of sounds; () where it is not known.

    Returns:
        float [B, C, ...], of the type that floats have.

    Raises:
        ValueError: it is none of these.
    """
    several, channels = (3 if len(shape) in (1, 2) else 4), (shape[0] if shape else None)
    if isinstance(media, (list, tuple)):
        items = [as_media(item, channels) for item in media]
        sizes = sorted({tuple(item.shape) for item in items})
        if len(sizes) != 1:
            came = " and ".join(map(str, sizes[:4])) or "none"
            raise ValueError(f"a list of media has items, all of one size; got {len(items)} of {came}")
        return torch.stack(items)
    value = torch.from_numpy(media) if isinstance(media, np.ndarray) and media.dtype.kind in "fiu" else media
    if not isinstance(value, Tensor) or value.dim() < several:
        return as_media(media, channels)[None]
    if value.dtype == torch.uint8:
        return torch.stack([as_media(item) for item in value])
    if not value.is_floating_point() or (value.numel() and not value.abs().max() <= 16):  # loud sound goes a little beyond 1
        raise ValueError(f"media are floats in [-1, 1]; got {value.dtype} with values that are not (pixels: x / 127.5 - 1, or uint8)")
    return value
