"""Images in and out: media float [C, H, W] in [-1, 1] <-> image files, and grids of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentok.atomic import replacing
from gentok.data.image_decoding import cover, opened, plain, upright_size

__all__ = ["grid", "image_size", "pairs", "read_image", "read_pixels", "save_grid", "save_image", "to_media", "to_uint8"]

WHITE_PAPER = 1.0
"""Gaps of a grid are white: digits and photographs both stand out."""


def to_uint8(media: Tensor) -> Tensor:
    """float [..., C, H, W] in [-1, 1] (clipped) -> uint8 of the same shape, rounded to the nearest level."""
    return ((media.detach().float().cpu() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(media: Tensor, columns: int, gap: int = 2, scale: int = 1) -> Tensor:
    """Lays images out as one, row by row. Missing cells of the last row stay white.

    Args:
        media: float [B, C, H, W], C = 1 or 3.
        columns: images of a row.
        gap: pixels between images.
        scale: every pixel becomes scale x scale (small images on large screens).

    Returns:
        float [C, rows * (H + gap) - gap, columns * (W + gap) - gap], H and W being scaled.

    Raises:
        ValueError: another shape, or no image.
    """
    if media.dim() != 4 or media.shape[1] not in (1, 3) or not len(media):
        raise ValueError(f"a grid takes images [B, 1 or 3, H, W] with B >= 1; got {tuple(media.shape)}")
    media = media.detach().float().cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = media.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    out = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), WHITE_PAPER)
    for i, image in enumerate(media):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[:, y : y + height, x : x + width] = image
    return out


def pairs(above: Tensor, below: Tensor, columns: int = 10, rows: int = 4) -> Tensor:
    """Two sets float [B, C, H, W] -> up to `rows` full rows of the first, each over the same row of the second, for a grid of
    min(B, columns) columns."""
    columns = min(columns, len(above))
    count = min(len(above) // columns, rows) * columns
    shape = (-1, 1, columns, *above.shape[1:])
    return torch.cat([above[:count].reshape(shape), below[:count].reshape(shape)], 1).flatten(0, 2)


def save_image(media: Tensor, path: str | os.PathLike[str]) -> Path:
    """media float [C, H, W], C = 1 or 3 -> an image file (the suffix says which kind), written whole or not at all."""
    from PIL import Image

    pixels = to_uint8(media).movedim(0, -1).numpy()
    with replacing(path) as temporary:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary)
    return Path(path)


def save_grid(media: Tensor, path: str | os.PathLike[str], columns: int, gap: int = 2, scale: int = 1) -> Path:
    """`grid` and `save_image` in one: media float [B, C, H, W] -> a PNG."""
    return save_image(grid(media, columns, gap, scale), path)


def read_image(path: str | os.PathLike[str], channels: int = 3, size: int | Sequence[int] | None = None) -> Tensor:
    """An image file of any kind -> float [channels, H, W] in [-1, 1]; `read_pixels` says what becomes of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    return to_media(torch.from_numpy(read_pixels(path, channels, size)))


def read_pixels(
    source: str | os.PathLike[str] | bytes | BinaryIO, channels: int = 3, size: int | Sequence[int] | None = None, name: str = ""
) -> Any:
    """Reads an image.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled, animations give their first frame.

    Args:
        source: the file's path, its bytes, or a binary file that can seek.
        channels: 1 (grey) or 3 (RGB).
        size: side or (height, width); the image is scaled (bicubic) until it covers that, then cut around its centre.
        name: what errors call the image; by default its path.

    Returns:
        Array [channels, H, W]: uint8, or float32 on the scale 0..255 for 16-bit grey.

    Raises:
        ValueError: the image cannot be read, is cut short, or has more pixels than PIL's limit.
    """
    import numpy as np

    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: 1 (grey) or 3 (RGB)")

    def decoded(image: Any) -> Any:
        image = plain(image, channels)
        return np.array(image if size is None else cover(image, *((size, size) if isinstance(size, int) else size)))

    pixels = opened(source, name, decoded)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def image_size(source: str | os.PathLike[str] | bytes | BinaryIO, name: str = "") -> tuple[int, int]:
    """(height, width) of the image when upright, from its header alone.

    Args:
        source, name: those of `read_pixels`.

    Raises:
        ValueError: the header cannot be read.
    """
    return opened(source, name, upright_size)


def to_media(pixels: Tensor) -> Tensor:
    """uint8 or float [..., C, H, W] on the scale 0..255 -> float32 in [-1, 1], clipped."""
    return (pixels.float() / 127.5 - 1.0).clamp(-1.0, 1.0).contiguous()
