"""The convolutional networks of MaskGIT's VQGAN (Chang et al., arXiv 2202.04200) as in its release: without attention, halved by averages.

They differ from gentok/nn/autoencoder.py in that the convolutions of a block have no bias, that where a block's width changes its skip is
a 1x1 convolution of the block's *result* and not of its input, and that the middle and the decoder have as many blocks as the encoder.
Images are in [0, 1]. Any height and width that the stride divides go through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.autoencoder import ResidualBlock, Upsample, group_norm
from gentok.nn.staged_encoder import StagedEncoder

__all__ = ["MaskGITDecoder", "MaskGITEncoder", "maskgit_layers"]


class MaskGITBlock(ResidualBlock):
    """x [B, width_in, H, W] -> [B, width_out, H, W]: two pre-activated 3x3 convolutions h; x + h, or skip(h) + h where widths differ."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)
        self.skip = nn.Conv2d(width_out, width_out, 1, bias=False) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.skip is None else self.skip(h))


def _stage(width_in: int, width_out: int, blocks: int) -> list[nn.Module]:
    return [MaskGITBlock(width_out if i else width_in, width_out) for i in range(blocks)]


class MaskGITEncoder(StagedEncoder):
    """Of media in [0, 1], halved by averages."""

    stage = staticmethod(_stage)

    def __init__(self, channels: int, out_width: int, width: int = 128, multipliers: Sequence[int] = (1, 1, 2, 2, 4), blocks: int = 2):
        super().__init__(channels, out_width, width, multipliers, blocks)

    @staticmethod
    def halved(width: int) -> nn.Module:
        return nn.AvgPool2d(2)


class MaskGITDecoder(nn.Module):
    """features [B, D, h, w] -> media [B, C, h * stride, w * stride], of [0, 1], unbounded. The arguments are the encoder's."""

    def __init__(self, channels: int, in_width: int, width: int = 128, multipliers: Sequence[int] = (1, 1, 2, 2, 4), blocks: int = 2):
        super().__init__()
        now = width * multipliers[-1]
        self.stem = nn.Conv2d(in_width, now, 3, padding=1)
        layers = _stage(now, now, blocks)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            layers += _stage(now, width * multiplier, blocks)
            now = width * multiplier
            layers += [Upsample(now)] if i else []
        self.body = nn.Sequential(*layers)
        self.norm, self.head = group_norm(now), nn.Conv2d(now, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.body(self.stem(features)))))


def maskgit_layers(stages: int, blocks: int, side: str) -> list[str]:
    """What the release (in PyTorch: bytedance/1d-tokenizer) calls the layers of a network's `body`. side: encoder or decoder."""
    middle, names = [f"mid.{i}" for i in range(blocks)], []
    for stage in range(stages):
        names += ["pooling"] if stage else []
        names += [f"down.{stage}.block.{i}" for i in range(blocks)]
    if side == "encoder":
        return [*names, *middle]
    names = []
    for stage in reversed(range(stages)):
        names += [f"up.{stage}.block.{i}" for i in range(blocks)]
        names += [f"up.{stage}"] if stage else []
    return [*middle, *names]
