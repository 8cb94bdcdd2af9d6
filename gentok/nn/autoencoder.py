"""The convolutional encoder and decoder of VQGAN (Esser et al., "Taming Transformers", arXiv 2012.09841, appendix A).

Residual blocks of GroupNorm, SiLU and 3x3 convolutions at one resolution per multiplier, halved between resolutions by a strided
convolution and doubled by nearest upsampling and a convolution; at the lowest resolution two more blocks, with single-head attention
around them if asked for. No layer knows the image's size: any height and width that `stride` divides go through.

Deviations: `patch` > 1 folds patch x patch pixels into channels before the first convolution and unfolds them after the last one
(pixel unshuffle), because the convolutions at full resolution are most of the cost and least of the use. With patch 1, blocks 2 and
attention the parameters are those of the published VQ-16 networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.settings import CheckedDataclass, Count, PositiveInt, PositiveInts

__all__ = [
    "VQ16", "ConvDecoder", "ConvEncoder", "ConvOptions", "ConvSettings", "ResidualBlock", "SpatialAttention", "Upsample", "group_norm",
]  # fmt: skip


@dataclass(frozen=True)
class ConvSettings(CheckedDataclass):
    """What a convolutional encoder and its decoder can be told.

    Attributes:
        width: channels at the first resolution.
        multipliers: of the width, one for each resolution.
        blocks: residual blocks of a resolution; the decoder has one more.
        attention: whether it follows every block of the lowest resolution.
        patch: side in pixels of the squares that are folded into channels first.
        decoder_width, decoder_blocks: the decoder's where they differ.
        code_conv: side of a convolution between each network and the codebook; 0: none.
    """

    width: PositiveInt = 32
    multipliers: PositiveInts = (1, 2)
    blocks: Count = 1
    attention: bool = False
    patch: PositiveInt = 2
    decoder_width: PositiveInt | None = None
    code_conv: Literal[0, 1, 3] = 0
    decoder_blocks: Count | None = None

    @property
    def halvings(self) -> int:
        """How often the folded image is halved: behind the encoder's first stages, and doubled behind the decoder's first ones."""
        return len(self.multipliers) - 1

    @property
    def stage_attention(self) -> bool:
        """Whether attention follows the blocks of the lowest resolution as well as standing in the middle."""
        return self.attention

    @property
    def stride(self) -> int:
        """Pixels per side of a cell of the feature map."""
        return self.patch * 2**self.halvings

    def blocks_of(self, side: str) -> int:
        """Residual blocks of a resolution. side: encoder or decoder."""
        return self.blocks if side == "encoder" else 1 + (self.blocks if self.decoder_blocks is None else self.decoder_blocks)


ConvOptions = Annotated[Any, ConvSettings]
"""Of a constructor's `**options`: they are the fields of ConvSettings (gentok/build.py reads this)."""
VQ16 = ConvSettings(128, (1, 1, 2, 2, 4), blocks=2, attention=True, patch=1)
"""The published networks of 16 pixels per code."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups, or of as many as divide both."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x [B, width_in, H, W] -> [B, width_out, H, W]: two pre-activated 3x3 convolutions beside a skip.

    Args:
        width_in: channels.
        width_out: channels; where they differ, the skip is a 1x1 convolution.
        bias: whether convolutions have one.
    """

    def __init__(self, width_in: int, width_out: int, bias: bool = True):
        super().__init__()
        self.norm1, self.conv1 = group_norm(width_in), nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias)
        self.norm2, self.conv2 = group_norm(width_out), nn.Conv2d(width_out, width_out, 3, padding=1, bias=bias)
        self.skip = nn.Conv2d(width_in, width_out, 1, bias=bias) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class SpatialAttention(nn.Module):
    """x [B, width, H, W] -> the same: every position attends to every other with one head, beside a skip.

    Args:
        width: channels, all of the one head.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, d, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.out(y.transpose(1, 2).reshape(b, d, h, w))


class Downsample(nn.Module):
    """Halves height and width; pads right and below alone, as published."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width by repetition, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _stage(width_in: int, width_out: int, blocks: int, attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(ResidualBlock(width_in if i == 0 else width_out, width_out))
        if attention:
            layers.append(SpatialAttention(width_out))
    return layers


def _middle(width: int, attention: bool) -> list[nn.Module]:
    return [ResidualBlock(width, width), *([SpatialAttention(width)] if attention else []), ResidualBlock(width, width)]


def _code_conv(width: int, side: int) -> nn.Module | None:
    return nn.Conv2d(width, width, side, padding=side // 2) if side else None


class _Convolutional(nn.Module):
    def _run(self, x: Tensor) -> Tensor:
        # Tensor cores want channels last; on CPU its GroupNorm takes 12 times as long in bfloat16, and a training step 1.4 times.
        x = self.stem(x.contiguous(memory_format=torch.channels_last if x.is_cuda else torch.contiguous_format))
        return self.head(F.silu(self.norm(self.body(x))))


class ConvEncoder(_Convolutional):
    """media [B, C, H, W] -> features [B, D, H / stride, W / stride].

    Args:
        channels: C.
        out_width: D.
        settings: of the network.
    """

    def __init__(self, channels: int, out_width: int, settings: ConvSettings = VQ16):
        super().__init__()
        width, multipliers, attention = settings.width, settings.multipliers, settings.attention
        self.fold = nn.PixelUnshuffle(settings.patch)
        self.stem = nn.Conv2d(channels * settings.patch**2, width, 3, padding=1)
        layers: list[nn.Module] = []
        now = width
        for i, multiplier in enumerate(multipliers):
            last = i == len(multipliers) - 1
            layers += _stage(now, width * multiplier, settings.blocks, settings.stage_attention and last)
            now = width * multiplier
            layers += [Downsample(now)] if i < settings.halvings else []
        self.body = nn.Sequential(*layers, *_middle(now, attention))
        self.norm, self.head = group_norm(now), nn.Conv2d(now, out_width, 3, padding=1)
        self.to_code = _code_conv(out_width, settings.code_conv)

    def forward(self, media: Tensor) -> Tensor:
        features = self._run(self.fold(media))
        return features if self.to_code is None else self.to_code(features)


class ConvDecoder(_Convolutional):
    """features [B, D, h, w] -> media [B, C, h * stride, w * stride], unbounded.

    Args:
        channels: C.
        in_width: D.
        settings: of the network.
    """

    def __init__(self, channels: int, in_width: int, settings: ConvSettings = VQ16):
        super().__init__()
        width, multipliers, attention = settings.decoder_width or settings.width, settings.multipliers, settings.attention
        now = width * multipliers[-1]
        self.from_code = _code_conv(in_width, settings.code_conv)
        self.stem = nn.Conv2d(in_width, now, 3, padding=1)
        layers = _middle(now, attention)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            last = i == len(multipliers) - 1
            layers += _stage(now, width * multiplier, settings.blocks_of("decoder"), settings.stage_attention and last)
            now = width * multiplier
            layers += [Upsample(now)] if i >= len(multipliers) - settings.halvings else []
        self.body = nn.Sequential(*layers)
        self.norm, self.head = group_norm(now), nn.Conv2d(now, channels * settings.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(settings.patch)

    def forward(self, features: Tensor) -> Tensor:
        return self.unfold(self._run(features if self.from_code is None else self.from_code(features)))
