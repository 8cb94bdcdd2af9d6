"""Images by Pillow: opened, upright, in plain modes, scaled and cut."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gentok.data.names import printable

__all__ = ["IMAGE_SUFFIXES", "cover", "opened", "plain", "upright_size"]

_TURNS = dict(
    enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), start=2)
)
"""What makes an image upright, by its orientation."""
_MOST_SCALED = 1 << 22
"""Pixels of a scaled image from which on only the part is scaled that is kept, where that is less than a quarter."""
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""What Pillow opens with the help of other programs, or not at all."""


def opened(source: Any, name: str, use: Callable[[Any], Any]) -> Any:
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
        said = getattr(error, "strerror", None) or str(error)
        reason = " ".join(said.split()) or type(error).__name__
        reason = reason.split(", could be decompression bomb")[0]
        if reason.startswith("cannot identify image file"):
            reason = "it is empty" if _is_empty(file) else "no known format"
        raise ValueError(f"{shown} cannot be read as an image: {reason}") from error


def _is_empty(file: Any) -> bool:
    if isinstance(file, (str, os.PathLike)):
        return os.path.getsize(file) == 0
    return file.seek(0, os.SEEK_END) == 0


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that this Pillow reads by itself, the usual ones first."""
    from PIL import Image

    Image.init()
    usual = [name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM") if name in Image.ID]
    return (*usual, *(name for name in Image.ID if name not in _NO_IMAGES.union(usual)))


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


def upright_size(image: Any) -> tuple[int, int]:
    """(height, width)."""
    width, height, orientation = image.width, image.height, _orientation(image)
    if image.format == "TIFF":  # newer versions of PIL say the upright size already
        width, height, orientation = image.tag_v2[256], image.tag_v2[257], image.tag_v2.get(274, 1)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)  # stored on its side


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


def plain(image: Any, channels: int) -> Any:
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


def cover(image: Any, height: int, width: int) -> Any:
    """Scaled, keeping its shape, until it covers height x width, then cut around the centre. A long strip is not scaled whole."""
    from PIL import Image

    if image.size == (width, height):
        return image
    ratio = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    if scaled[0] * scaled[1] > max(_MOST_SCALED, 4 * width * height):
        spans = [_source_span(*axis) for axis in zip((left, top), (width, height), scaled, image.size)]
        image = image.crop([first for first, _, _ in spans] + [last for _, last, _ in spans])
        box = [start for _, _, (start, _) in spans] + [end for _, _, (_, end) in spans]
        return image.resize((width, height), Image.Resampling.BICUBIC, box)
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    return image.crop((left, top, left + width, top + height))


def _source_span(start: int, length: int, scaled: int, size: int) -> tuple[int, int, tuple[float, float]]:
    """What of an axis of `size` pixels becomes pixels start .. start + length of `scaled`: first and last + 1 pixel with all that the
    filter sees, and where in these the part begins and ends."""
    step = size / scaled
    around = math.ceil(2 * max(1.0, step)) + 1
    first, last = max(0, math.floor(start * step) - around), min(size, math.ceil((start + length) * step) + around)
    return first, last, (start * step - first, min((start + length) * step - first, last - first))
