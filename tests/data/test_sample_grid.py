"""The grid of samples: large enough to see something, labels beside the images and never on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from gentok.data.image_files import to_uint8
from gentok.data.sample_grid import condition_labels, save_sample_grid
from gentok.types import ClassSpec, ConditionSpec, IdsSpec

STRIP = 20


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def media(count: int, channels: int = 1, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


SHAPES = [  # images, columns, channels, height, width -> scale
    (4, 2, 1, 32, 32, 8), (16, 4, 3, 32, 32, 4), (1, 1, 1, 16, 16, 32), (12, 6, 1, 28, 28, 4), (4, 4, 3, 256, 256, 1), (5, 9, 3, 80, 51, 3),
    (100, 1, 1, 32, 32, 1), (3, 2, 1, 7, 5, 52),
]  # fmt: skip


@pytest.mark.parametrize("count, columns, channels, height, width, scale", SHAPES)
def test_small_images_are_enlarged_by_a_whole_number_without_smoothing(tmp_path, count, columns, channels, height, width, scale):
    given = media(count, channels, height, width)
    shown = pixels(save_sample_grid(given, tmp_path / "grid.png", columns))
    across, rows = min(columns, count), -(-count // min(columns, count))
    assert shown.shape[:2] == (rows * (height * scale + 2) - 2, across * (width * scale + 2) - 2)
    assert shown.shape[1] >= 512 or count == 100, "as wide as one needs to see something, unless it would be very tall"
    for i, image in enumerate(given):
        y, x = i // across * (height * scale + 2), i % across * (width * scale + 2)
        wanted = to_uint8(image).repeat_interleave(scale, 1).repeat_interleave(scale, 2).expand(3, -1, -1)
        assert np.array_equal(shown[y : y + height * scale, x : x + width * scale], wanted.movedim(0, -1))


LABELS = [  # labels, columns -> the strips above rows, by the columns with a text
    (["7"] * 6, 3, {0: [0]}),
    (["3", "5", "7"] * 2, 3, {0: [0, 1, 2]}),
    (["3", "3", "5", "5", "7"], 2, {0: [0], 1: [0], 2: [0]}),
    (["3", "5", "7", "3"], 3, {0: [0, 1, 2]}),
    (["3", "5", "7", "3", "5"], 2, {0: [0, 1], 1: [0, 1], 2: [0]}),
    (["a long text of which not all can be shown " * 9, "b\nc"], 2, {0: [0, 1]}),
    (["horse", "猫", "ж", "null"], 4, {0: [0, 1, 2, 3]}),
]


@pytest.mark.parametrize("labels, columns, strips", LABELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_labels_stand_above_their_row_or_column_and_cover_nothing(tmp_path, labels, columns, strips, channels):
    given = media(len(labels), channels, 32, 32)
    plain = pixels(save_sample_grid(given, tmp_path / "plain.png", columns))
    shown = pixels(save_sample_grid(given, tmp_path / "grid.png", columns, labels))
    cell = (plain.shape[1] + 2) // columns
    rows, y, kept = -(-len(labels) // columns), 0, []
    for row in range(rows):
        if row in strips:
            strip = shown[y : y + STRIP]
            inked = [c for c in range(columns) if (strip[:, c * cell : (c + 1) * cell - 2] < 128).any()]
            assert inked == strips[row]
            assert (strip[:, [c * cell + k for c in range(1, columns) for k in (-2, -1)]] == 255).all(), "a text runs into the next"
            y += STRIP
        height = cell - 2 + 2 * (row < rows - 1)
        kept.append(shown[y : y + height])
        y += height
    assert y == len(shown) and np.array_equal(np.concatenate(kept), plain)


def test_labelled_images_are_wide_enough_for_a_word(tmp_path):
    shown = pixels(save_sample_grid(media(16, width=16, height=16), tmp_path / "grid.png", 16, [f"class {i}" for i in range(16)]))
    assert shown.shape[1] == 16 * 66 - 2


SPEC = ConditionSpec((("class", ClassSpec(("cat", "dog"))), ("text", IdsSpec(tuple(" abc"), 8))))


@pytest.mark.parametrize(
    "condition, labels",
    [
        (None, []),
        (1, ["dog", "dog", "dog"]),
        (["cat", None], ["cat", "null", "cat"]),
        ({"class": [0, 1], "text": "ab c"}, ["cat, ab c", "dog, ab c", "cat, ab c"]),
        ({"text": ["a", "b", "c"]}, ["a", "b", "c"]),
    ],
)
def test_labels_are_what_was_asked_for(condition, labels):
    assert condition_labels(SPEC, condition, 3) == labels
    assert condition_labels(ConditionSpec(), None, 3) == []
