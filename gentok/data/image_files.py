"""Images in and out: media float [C, H, W] in [-1, 1] <-> image files, and grids of them."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.atomic import replacing

__all__ = ["to_uint8", "to_media", "grid", "pairs", "save_grid", "save_image", "read_image", "read_pixels", "image_size"]

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


def read_pixels(source: str | os.PathLike[str] | bytes, channels: int = 3, size: int | Sequence[int] | None = None, name: str = "") -> Any:
    """An image file, or the bytes of one -> array [channels, H, W]: uint8, or float32 on the scale 0..255 for 16-bit grey.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled, animations give their first frame.

    Args:
        source: the file's path, or its bytes.
        channels: 1 (grey) or 3 (RGB).
        size: side or (height, width); the image is scaled (bicubic) until it covers that, then cut around its centre.
        name: what errors call the image; by default its path.

    Raises:
        ValueError: the image cannot be read, is cut short, or has more pixels than PIL's limit.
    """
    import numpy as np

    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: 1 (grey) or 3 (RGB)")
    try:
        with _strict_warnings(), _open(source) as opened:
            image = _plain(opened, channels)
        if size is not None:
            image = _cover(image, *((size, size) if isinstance(size, int) else size))
        pixels = np.array(image)
    except Exception as error:  # PIL's readers raise whatever a damaged file leads them to
        raise _unreadable(source, name, error) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def image_size(source: str | os.PathLike[str] | bytes, name: str = "") -> tuple[int, int]:
    """(height, width) of the image when upright, from its header alone.

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        with _strict_warnings(), _open(source) as image:
            stored = "exif" in image.info or image.format == "TIFF"  # without this, a PNG would be decoded to look for it
            turned = stored and image.getexif().get(0x0112, 1) >= 5  # orientation: stored on its side
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise _unreadable(source, name, error) from error


def to_media(pixels: Tensor) -> Tensor:
    """uint8 or float [..., C, H, W] on the scale 0..255 -> float32 in [-1, 1], clipped."""
    return (pixels.float() / 127.5 - 1.0).clamp(-1.0, 1.0).contiguous()


@contextlib.contextmanager
def _strict_warnings() -> Iterator[None]:
    """PIL only warns of more pixels than its limit, and raises at twice that; here the limit is the limit. Its other warnings, of odd tags,
    say nothing that the outcome does not."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _open(source: Any) -> Any:
    """PIL's lazy image."""
    from PIL import Image

    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _unreadable(source: Any, name: str, error: Exception) -> ValueError:
    shown = name or ("the image" if isinstance(source, bytes) else source)
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason.split(", could be decompression bomb")[0].replace("cannot identify image file <_io.BytesIO object", "no known format <")
    return ValueError(f"{shown} cannot be read as an image: {reason}")


def _plain(image: Any, channels: int) -> Any:
    """Any PIL image -> one in mode F (16-bit grey, on the scale 0..255), L or RGB, upright."""
    import numpy as np
    from PIL import Image, ImageOps

    if image.format != "JPEG" or "exif" in image.info or "xmp" in image.info:  # where else an orientation could stand takes long to say
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey; kept as float, so that no level is lost
        values = np.asarray(image, dtype=np.float32)
        top = 1.0 if image.mode == "F" else 65535.0
        if values.min() < 0 or values.max() > top:
            raise ValueError(f"its values reach from {values.min():g} to {values.max():g}; expected 0..{top:g} in mode {image.mode}")
        grey = Image.fromarray(values * (255.0 / top))
        return grey if channels == 1 else Image.merge("RGB", [Image.fromarray(np.rint(np.asarray(grey)).astype(np.uint8))] * 3)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def _cover(image: Any, height: int, width: int) -> Any:
    """Scaled, keeping its shape, until it covers height x width, then cut around the centre."""
    from PIL import Image

    if image.size == (width, height):
        return image
    ratio = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
