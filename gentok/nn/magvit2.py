"""The convolutional networks of Open-MAGVIT2 (Luo et al., arXiv 2409.04410), after MAGVIT-v2 (Yu et al., arXiv 2310.05737, appendix A).

Residual blocks without biases, halved by strided convolutions and doubled by a convolution to four times the channels that become 2 x 2
pixels. Before each resolution of the decoder a norm is scaled and shifted by what the code vectors of the whole map are like:

    x <- gamma(std z) * groupnorm(x) + beta(mean z)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.autoencoder import ResidualBlock, group_norm
from gentok.nn.staged_encoder import StagedEncoder

__all__ = ["MAGVIT2Decoder", "MAGVIT2Encoder", "magvit2_layers"]


def _stage(width_in: int, width_out: int, blocks: int) -> list[nn.Module]:
    return [ResidualBlock(width_out if i else width_in, width_out, bias=False) for i in range(blocks)]


class AdaptiveNorm(nn.Module):
    """x float [B, width, H, W] and the code vectors z float [B, D, h, w] -> [B, width, H, W]."""

    def __init__(self, width: int, style: int):
        super().__init__()
        self.groups, self.eps = group_norm(width).num_groups, 1e-6
        self.gamma, self.beta = nn.Linear(style, width), nn.Linear(style, width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z = z.flatten(2)
        scale, shift = self.gamma((z.var(2) + self.eps).sqrt()), self.beta(z.mean(2))
        return scale[..., None, None] * F.group_norm(x, self.groups, eps=self.eps) + shift[..., None, None]


class ShuffleUp(nn.Module):
    """x [B, width, H, W] -> [B, width, 2 H, 2 W]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class MAGVIT2Encoder(StagedEncoder):
    """Halved by strided convolutions."""

    stage = staticmethod(_stage)

    @staticmethod
    def halved(width: int) -> nn.Module:
        return nn.Conv2d(width, width, 3, stride=2, padding=1)


class MAGVIT2Decoder(nn.Module):
    """features [B, D, h, w] -> media [B, C, h * stride, w * stride], unbounded. The arguments are the encoder's."""

    def __init__(self, channels: int, in_width: int, width: int, multipliers: Sequence[int], blocks: int):
        super().__init__()
        now = width * multipliers[-1]
        self.stem = nn.Conv2d(in_width, now, 3, padding=1)
        layers = _stage(now, now, blocks)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            layers += [AdaptiveNorm(now, in_width), *_stage(now, width * multiplier, blocks)]
            now = width * multiplier
            layers += [ShuffleUp(now)] if i else []
        self.body = nn.ModuleList(layers)
        self.norm, self.head = group_norm(now), nn.Conv2d(now, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.stem(features)
        for layer in self.body:
            x = layer(x, features) if isinstance(layer, AdaptiveNorm) else layer(x)
        return self.head(F.silu(self.norm(x)))


def magvit2_layers(stages: int, blocks: int, side: str) -> list[str]:
    """What the release calls the layers of a network's `body`. side: encoder or decoder."""
    middle, names = [f"mid_block.{i}" for i in range(blocks)], []
    for stage in range(stages):
        names += [f"down.{stage - 1}.downsample"] if stage else []
        names += [f"down.{stage}.block.{i}" for i in range(blocks)]
    if side == "encoder":
        return [*names, *middle]
    names = []
    for stage in reversed(range(stages)):
        names += [f"adaptive.{stage}", *(f"up.{stage}.block.{i}" for i in range(blocks))]
        names += [f"up.{stage}.upsample"] if stage else []
    return [*middle, *names]
