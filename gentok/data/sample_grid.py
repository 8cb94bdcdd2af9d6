"""The grid of samples: large enough to see something, and with the conditions that were asked for above the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gentok.atomic import replacing
from gentok.data.image_files import grid, to_uint8
from gentok.types import Class, ClassSpec, ConditionSpec, Ids, IdsSpec, VectorsSpec

__all__ = ["condition_labels", "save_sample_grid"]

WIDTH, HEIGHT, LABELLED = 512, 4096, 64
"""Small images are enlarged by a whole number until the grid is WIDTH wide, and a labelled image LABELLED, unless the grid grows above
HEIGHT."""
_GAP, _FONT, _STRIP = 2, 14, 20


def condition_labels(spec: ConditionSpec, value: Any, n: int) -> list[str]:
    """The class name and the text of each of `n` rows, "null" where it has none; [] where no row has any.

    value: see ConditionSpec.parse.
    """
    rows: list[list[str]] = []

    def unencoded(values: list[Any], kind: VectorsSpec) -> list[Any]:
        rows.append([values[i % len(values)] if isinstance(values[i % len(values)], str) else "" for i in range(n)])
        return [None] * len(values)

    condition = spec.parse(value, n, unencoded)
    for name, kind in spec.parts:
        part = condition.parts[name]
        if isinstance(kind, ClassSpec) and isinstance(part, Class):
            rows.append([kind.names[i] if i >= 0 else "" for i in part.ids.tolist()])
        elif isinstance(kind, IdsSpec) and isinstance(part, Ids):
            rows.append([kind.text(row) for row in part.ids.tolist()])
    labels = [", ".join(filter(None, row)) for row in zip(*rows)]
    return [label or "null" for label in labels] if any(labels) else []


def save_sample_grid(media: Tensor, path: str | os.PathLike[str], columns: int, labels: Sequence[str] = ()) -> Path:
    """Writes images as one, row by row, enlarged without smoothing.

    Args:
        media: float [B, C, H, W] in [-1, 1], C = 1 or 3.
        path: of the PNG.
        columns: images of a row.
        labels: of each image, or none. Above a row stands the label of all of it, or one over each image; not where the row above
            has the same.

    Returns:
        The path.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = media.shape
    columns = max(1, min(columns, count))
    rows = [list(labels[i : i + columns]) for i in range(0, count, columns)]
    wanted = max(-(-WIDTH // (columns * width)), -(-LABELLED // width) if labels else 1)
    scale = max(1, min(wanted, HEIGHT // (len(rows) * height)))
    pixels = to_uint8(grid(media, columns, _GAP, scale)).movedim(0, -1).numpy()
    plain = image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if labels:
        import matplotlib

        strips = [i == 0 or row != rows[i - 1][: len(row)] for i, row in enumerate(rows)]
        font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT)
        image = Image.new(plain.mode, (plain.width, plain.height + _STRIP * sum(strips)), "white")
        below = height * scale + _GAP
        for i, row in enumerate(rows):
            y = i * below + _STRIP * sum(strips[: i + 1])
            image.paste(plain.crop((0, i * below, plain.width, min(plain.height, (i + 1) * below))), (0, y))
            texts = row[:1] if len(set(row)) == 1 else row
            step = plain.width if len(texts) == 1 else width * scale + _GAP
            for column, text in enumerate(texts if strips[i] else ()):
                strip = Image.new(plain.mode, (step - 4, _STRIP), "white")  # what does not fit is cut off
                ImageDraw.Draw(strip).text((0, 1), " ".join(text.split()), "black", font)
                image.paste(strip, (column * step, y - _STRIP))
    with replacing(path) as temporary:
        image.save(temporary)
    return Path(path)
