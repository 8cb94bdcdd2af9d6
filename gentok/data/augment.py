"""Augment: shifts and flips of whole images, drawn by row, so that an item's view is a pure function of its seed."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.interfaces import Augmentation
from gentok.rng import RowRNG
from gentok.settings import NonNegativeInt

__all__ = ["Augment"]


class Augment(Augmentation, id="augmentation/shift_flip"):
    """Integer shifts, uniform in -shift..shift along both axes, and horizontal flips with probability 1/2.

    Args:
        shift: pixels; 0 for none.
        flip: whether to flip; not for anything that has a handedness (digits, letters).
        fill: what enters at the border: "edge" repeats the outermost pixels, a number in [-1, 1] is a background.

    Raises:
        ValueError: a negative shift, or another word as `fill`.
    """

    def __init__(self, shift: NonNegativeInt = 0, flip: bool = False, fill: str | float = "edge"):
        if isinstance(fill, str) and fill != "edge":
            raise ValueError(f"augment.fill={fill!r}: either 'edge' or a background in [-1, 1]")
        self.shift, self.flip, self.fill = shift, flip, fill

    def __call__(self, media: Tensor, rng: RowRNG) -> Tensor:
        """media [B, C, H, W] -> the same shape and dtype. Draws three numbers of each row, whatever the settings.

        Raises:
            ValueError: media that are no images, where shifts or flips are wanted.
        """
        rows, height, width = media.shape[0], media.shape[-2], media.shape[-1]
        u = rng.uniform(3).to(media.device)
        if self.shift == 0 and not self.flip:
            return media
        if media.dim() != 4:
            raise ValueError("shifts and flips are of images: set task.augment.shift=0 task.augment.flip=false")
        dy, dx = (u[:, :2] * (2 * self.shift + 1)).floor().long().sub(self.shift).unbind(1)
        y = torch.arange(height, device=media.device) - dy[:, None]  # [B, H]: where each output row comes from
        x = torch.arange(width, device=media.device) - dx[:, None]
        if self.flip:
            x = torch.where(u[:, 2:] < 0.5, width - 1 - x, x)
        batch = torch.arange(rows, device=media.device)[:, None, None]
        out = media[batch, :, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]].movedim(-1, 1)
        if self.fill != "edge":
            outside = ((y < 0) | (y >= height))[:, :, None] | ((x < 0) | (x >= width))[:, None, :]
            out = out.masked_fill(outside[:, None], float(self.fill))
        return out.contiguous()
