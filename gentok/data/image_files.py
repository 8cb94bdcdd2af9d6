"""Images in and out: media float [C, H, W] in [-1, 1] <-> image files, and grids of them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentok.atomic import replacing
from gentok.data.names import printable

__all__ = [
    *("IMAGE_SUFFIXES", "grid", "image_size", "pairs", "read_image", "read_pixels", "save_grid", "save_image", "to_media", "to_uint8"),
]

_TURNS = dict(
    enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), start=2)
)
"""What makes an image upright, by its orientation."""
_MOST_SCALED = 1 << 22
"""Pixels of a scaled image from which on only the part is scaled that is kept, where that is less than a quarter."""
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""What Pillow opens with the help of other programs, or not at all."""

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

    def decoded(opened: Any) -> Any:
        image = _plain(opened, channels)
        return np.array(image if size is None else _cover(image, *((size, size) if isinstance(size, int) else size)))

    pixels = _opened(source, name, decoded)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def image_size(source: str | os.PathLike[str] | bytes | BinaryIO, name: str = "") -> tuple[int, int]:
    """(height, width) of the image when upright, from its header alone.

    Args:
        source, name: those of `read_pixels`.

    Raises:
        ValueError: the header cannot be read.
    """
    return _opened(source, name, _upright_size)


def to_media(pixels: Tensor) -> Tensor:
    """uint8 or float [..., C, H, W] on the scale 0..255 -> float32 in [-1, 1], clipped."""
    return (pixels.float() / 127.5 - 1.0).clamp(-1.0, 1.0).contiguous()


def _opened(source: Any, name: str, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of PIL's lazy image. What PIL's readers raise, which is whatever a damaged file leads them to, becomes one line.

    PIL only warns of more pixels than its limit, and raises at twice that; here the limit is the limit. Its other warnings, of odd tags,
    say nothing that the outcome does not.
    """
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(file, (str, os.PathLike)) and not Path(file).is_file():
            raise FileNotFoundError("there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(file, formats=_formats()) as image:
                    return use(image)
            except ValueError as error:
                if "MAX_TEXT" not in str(error):
                    raise
            with Image.open(_without_texts(file), formats=("PNG",)) as image:
                return use(image)
    except Exception as error:
        shown = name or (printable(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the image")
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.split(", could be decompression bomb")[0]
        reason = "no known format" if reason.startswith("cannot identify image file") else reason
        raise ValueError(f"{shown} cannot be read as an image: {reason}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that this Pillow reads by itself."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name not in _NO_IMAGES)


def _suffixes() -> tuple[str, ...]:
    """Suffixes of these formats, the usual ones first."""
    from PIL import Image

    usual = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in _formats()}
    return usual + tuple(sorted(known.difference(usual)))


IMAGE_SUFFIXES = _suffixes()
"""Of the files that are read as images."""


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(id, where it begins, its length with id and checksum) of the chunks of a PNG file."""
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length = 12 + int.from_bytes(head[:4], "big")
        yield head[4:], place, length
        place += length


def _without_texts(source: Any) -> BinaryIO:
    """A PNG file without its texts and its colour profile, which PIL refuses beyond 1 MB, and viewers do not."""
    with open(source, "rb") if isinstance(source, (str, os.PathLike)) else contextlib.nullcontext(source) as file:
        file.seek(0)
        out = io.BytesIO(file.read(8))
        out.seek(8)
        for kind, place, length in _png_chunks(file):
            if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
                file.seek(place)
                out.write(file.read(length))
    out.seek(0)
    return out


def _upright_size(image: Any) -> tuple[int, int]:
    """(height, width)."""
    width, height, orientation = image.width, image.height, _orientation(image)
    if image.format == "TIFF":  # newer versions of PIL say the upright size already
        width, height, orientation = image.tag_v2[256], image.tag_v2[257], image.tag_v2.get(274, 1)
    return (width, height) if orientation >= 5 else (height, width)  # stored on its side


def _orientation(image: Any) -> int:
    """1..8 of EXIF or XMP, before anything is decoded; 1 where PIL turns the image by itself."""
    from PIL import Image

    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # it may stand behind the pixels
        here = image.fp.tell()
        for kind, place, length in _png_chunks(image.fp):
            if kind == b"eXIf":
                image.fp.seek(place + 8)
                image.info["exif"] = b"Exif\0\0" + image.fp.read(length - 12)
        image.fp.seek(here)
    return Image.Image.getexif(image).get(0x0112, 1)  # a PNG's own `getexif` decodes it


def _plain(image: Any, channels: int) -> Any:
    """Any PIL image -> one in mode F (16-bit grey, on the scale 0..255), L or RGB, upright."""
    import numpy as np
    from PIL import Image

    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey; kept as float, so that no level is lost
        values = np.asarray(image, dtype=np.float32)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= top):  # nor NaN
            raise ValueError(f"its values reach from {values.min():g} to {values.max():g}; expected 0..{top:g} in mode {image.mode}")
        grey = Image.fromarray(values * (255.0 / top))
        return grey if channels == 1 else Image.merge("RGB", [Image.fromarray(np.rint(np.asarray(grey)).astype(np.uint8))] * 3)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def _cover(image: Any, height: int, width: int) -> Any:
    """Scaled, keeping its shape, until it covers height x width, then cut around the centre. A long strip is not scaled whole."""
    from PIL import Image

    if image.size == (width, height):
        return image
    ratio = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    box = (left, top, left + width, top + height)
    if scaled[0] * scaled[1] > max(_MOST_SCALED, 4 * width * height):
        x, y = image.width / scaled[0], image.height / scaled[1]
        return image.resize((width, height), Image.Resampling.BICUBIC, (box[0] * x, box[1] * y, box[2] * x, box[3] * y))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    return image.crop(box)
