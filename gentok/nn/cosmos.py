"""The convolutional networks of NVIDIA's Cosmos tokenizers of images (arXiv 2501.03575, section 4).

Images are first taken apart by a Haar wavelet, log2(patch) times over all channels; of each square of 2 x 2 pixels

    a b    (a + b + c + d) / 4,  (a + b - c - d) / 4,  (a - b + c - d) / 4,  (a - b - c + d) / 4
    c d

and put together again by its inverse. Between are VQGAN's networks (gentok/nn/autoencoder.py) but for two things: attention stands in the
middle alone, and stages may be more than halvings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, ConvSettings
from gentok.settings import Count

__all__ = ["CosmosDecoder", "CosmosEncoder", "CosmosOptions", "CosmosSettings", "Haar", "InverseHaar"]


@dataclass(frozen=True)
class CosmosSettings(ConvSettings):
    """As of ConvSettings, where `attention` is that of the middle, and `patch` is a power of 2.

    Attributes:
        halvings: of the wavelet's map, at most one for each stage: behind the encoder's first ones.
    """

    halvings: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch & (self.patch - 1):
            raise ValueError(f"the wavelet has squares of 1, 2, 4, ... pixels; got patch={self.patch}")
        if self.halvings > len(self.multipliers):
            raise ValueError(f"{len(self.multipliers)} stages have at most as many halvings; got halvings={self.halvings}")

    @property
    def stage_attention(self) -> bool:
        return False


CosmosOptions = Annotated[Any, CosmosSettings]
"""Of a constructor's `**options`: they are the fields of CosmosSettings (gentok/build.py reads this)."""


class Haar(nn.Module):
    """float [B, C, patch h, patch w] -> [B, C * patch^2, h, w]: means first, then what rows, columns and diagonals differ by."""

    def __init__(self, patch: int):
        super().__init__()
        self.times = patch.bit_length() - 1

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
            x = torch.cat((a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d), 1) / 4
        return x


class InverseHaar(Haar):
    """float [B, C * patch^2, h, w] -> [B, C, patch h, patch w]."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            m, r, c, d = x.chunk(4, 1)
            squares = torch.stack((m + r + c + d, m + r - c - d, m - r + c - d, m - r - c + d), 2)
            x = F.pixel_shuffle(squares.flatten(1, 2), 2)
        return x


class CosmosEncoder(ConvEncoder):
    """media [B, C, H, W] -> features [B, D, H / stride, W / stride]. The arguments are ConvEncoder's."""

    def __init__(self, channels: int, out_width: int, settings: CosmosSettings):
        super().__init__(channels, out_width, settings)
        self.fold = Haar(settings.patch)


class CosmosDecoder(ConvDecoder):
    """features [B, D, h, w] -> media [B, C, h * stride, w * stride], unbounded. The arguments are ConvDecoder's."""

    def __init__(self, channels: int, in_width: int, settings: CosmosSettings):
        super().__init__(channels, in_width, settings)
        self.unfold = InverseHaar(settings.patch)
