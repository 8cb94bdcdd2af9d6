"""An encoder of images as several releases have it: residual blocks at each resolution, and a middle, without attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.autoencoder import group_norm

__all__ = ["StagedEncoder"]


class StagedEncoder(nn.Module):
    """media [B, C, H, W] -> features [B, D, H / stride, W / stride], stride = 2^(len(multipliers) - 1).

    Args:
        channels: C.
        out_width: D.
        width: channels at the first resolution.
        multipliers: of the width, one for each resolution.
        blocks: of a resolution, and of the middle.
    """

    def __init__(self, channels: int, out_width: int, width: int, multipliers: Sequence[int], blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        now = width
        for i, multiplier in enumerate(multipliers):
            layers += [self.halved(now)] if i else []
            layers += self.stage(now, width * multiplier, blocks)
            now = width * multiplier
        self.body = nn.Sequential(*layers, *self.stage(now, now, blocks))
        self.norm, self.head = group_norm(now), nn.Conv2d(now, out_width, 1)

    @staticmethod
    @abstractmethod
    def halved(width: int) -> nn.Module:
        """What halves the height and the width of a map of so many channels."""

    @staticmethod
    @abstractmethod
    def stage(width_in: int, width_out: int, blocks: int) -> list[nn.Module]:
        """The blocks of a resolution, the first of which changes the width."""

    def forward(self, media: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.body(self.stem(media)))))
