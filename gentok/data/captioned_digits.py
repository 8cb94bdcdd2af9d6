"""captioned_digits: mnist5k's real digits with captions such as "a thick seven, tilted left", whose attributes are measured from images.

Two numbers are measured of each digit: the mean width of its strokes, in pixels, and its slant, in pixels to the right per pixel
upwards. Of the digits in a lower or upper share of all 5,000 the caption says "thin" or "thick", "tilted left" or "tilted right"; of those
between it says nothing. So what a model of captions has drawn can be measured the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.datasets import MemoryDataset
from gentok.data.mnist5k import MNIST5k
from gentok.settings import NonNegativeInt
from gentok.types import Batch, Condition, ConditionSpec, Ids, IdsSpec

__all__ = ["WORDS", "CaptionedDigits", "attributes", "caption"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_THICKNESS, _SLANT = ("thin ", "", "thick "), (", tilted left", "", ", tilted right")


def attributes(media: Tensor) -> Tensor:
    """Measures digits.

    The width of a stroke is twice its area over its contour, whose length is the total variation of the image, by pi / 4 as its
    directions are mixed. The slant is the regression of the ink's column on its height (the second moments of image registration).

    Args:
        media: float [B, 1, H, W] in [-1, 1], light on dark.

    Returns:
        float64 [B, 2]: width in pixels, slant in pixels per pixel; 0 of an image without ink.
    """
    ink = (media[:, 0].double() + 1) / 2
    ink = torch.where(ink < 0.1, 0.0, ink)  # what a decoder leaves of the background
    area = ink.sum((1, 2))
    contour = (ink.diff(dim=1).abs().sum((1, 2)) + ink.diff(dim=2).abs().sum((1, 2))) * math.pi / 4
    share = ink / area.clamp(min=1e-9)[:, None, None]
    up = -torch.arange(ink.shape[1], dtype=torch.float64, device=ink.device)[:, None]
    right = torch.arange(ink.shape[2], dtype=torch.float64, device=ink.device)[None]
    up = up - (share * up).sum((1, 2), keepdim=True)
    right = right - (share * right).sum((1, 2), keepdim=True)
    slant = (share * up * right).sum((1, 2)) / (share * up * up).sum((1, 2)).clamp(min=1e-9)
    return torch.stack((2 * area / contour.clamp(min=1e-9), slant), 1) * (area > 0)[:, None]


def caption(digit: int, thickness: int, slant: int) -> str:
    """The words of a digit 0..9 whose attributes lie at -1 (lower share), 0 or 1 (upper share)."""
    words = f"{_THICKNESS[thickness + 1]}{WORDS[digit]}{_SLANT[slant + 1]}"
    return f"{'an' if words[0] == 'e' else 'a'} {words}"


class CaptionedDigits(MNIST5k, id="data/captioned_digits"):
    """media_shape (1, 32, 32); the condition `text` is a caption, letter by letter.

    Args:
        held_out, split_seed: as of MNIST5k.
        share: of all digits that are called thin, thick, tilted left, tilted right, each; in (0, 0.5).

    Attributes:
        bounds: float64 [2, 2], below which and above which an attribute is named: rows are width and slant.

    Raises:
        ValueError: another share, or a split that leaves nothing.
    """

    condition_spec = ConditionSpec((("text", IdsSpec(tuple(sorted({*"".join(WORDS), *"a thin thick, tilted left right"})), 28)),))

    def __init__(self, held_out: NonNegativeInt = 100, split_seed: NonNegativeInt = 0, share: float = 0.3):
        if not 0 < share < 0.5:
            raise ValueError(f"data.share={share}: between 0 and 0.5, the share of digits that are called thin, and that are called thick")
        super().__init__(held_out, split_seed)
        measured = [attributes(part.media.float() / 127.5 - 1) for part in (self.train, self.held_out)]
        self.bounds = torch.cat(measured).quantile(torch.tensor((share, 1 - share), dtype=torch.float64), dim=0).T.contiguous()
        both = zip((self.train, self.held_out), measured)
        self.train, self.held_out = (_Captioned(part, self.named(found), self) for part, found in both)

    def named(self, measured: Tensor) -> Tensor:
        """float64 [B, 2], of `attributes` -> int64 [B, 2]: -1, 0 or 1 where captions name the lower, no, the upper share."""
        low, high = self.bounds.to(measured.device).unbind(1)
        return (measured > high).long() - (measured < low).long()


class _Captioned(MemoryDataset):
    def __init__(self, digits: MemoryDataset, named: Tensor, data: CaptionedDigits):
        labels = digits.labels
        assert labels is not None
        self.captions = [caption(*row) for row in torch.cat((labels[:, None], named), 1).tolist()]
        about = {**digits.description, "data": "captioned_digits", "captions": data.bounds.flatten().tolist()}
        super().__init__(digits.media, labels, data.condition_spec, about)
        text = data.condition_spec.parts[0][1]
        self._ids = text.parse(self.captions, "text").ids  # type: ignore[union-attr]

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        batch: Any = super().__getitems__(draws)
        return Batch(batch.media, batch.index, Condition({"text": Ids(self._ids[batch.index])}))
