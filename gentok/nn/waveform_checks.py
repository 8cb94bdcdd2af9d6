"""What networks that judge waves share: the check of what they are given, their level, and convolutions with weight normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["check_wave", "levelled", "convolution"]


def check_wave(media: Tensor, channels: int, least: int) -> None:
    """Raises ValueError unless media is [B, channels, T] with T of at least `least` samples."""
    if media.dim() != 3 or media.shape[1] != channels:
        raise ValueError(f"this discriminator takes waves [B, {channels}, T]; got {tuple(media.shape)}: set its channels")
    if media.shape[2] < least:
        raise ValueError(f"this discriminator needs waves of at least {least} samples; got {media.shape[2]}: take longer crops")


def levelled(media: Tensor, peak: float | None) -> Tensor:
    """float [B, C, T] -> float32 (float64 stays): without its mean, and with its largest magnitude at `peak`, row by row and channel by
    channel, as DAC's discriminators hear it; as it is where `peak` is None. Magnitudes below 1e-6 count as 1e-6, so that silence stays
    silence (DAC adds 1e-9, by which the rounding of a constant wave becomes loud)."""
    media = media if media.dtype == torch.float64 else media.float()
    if peak is None:
        return media
    media = media - media.mean(-1, keepdim=True)
    return peak * media / media.abs().amax(-1, keepdim=True).clamp(min=1e-6)


class _Conv2d(nn.Conv2d):
    """A Conv2d that is right in bfloat16 on the CPU, also where its output is one value wide."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        # On a CPU with AMX, oneDNN's bfloat16 convolution (torch 2.14) reads uninitialised memory where the stride along the last axis is
        # above 1 and the output is one value wide: now and then it gives NaN in the output or in the gradients. float32 is not affected.
        span = (self.kernel_size[-1] - 1) * self.dilation[-1] + 1
        narrow = self.stride[-1] > 1 and x.shape[-1] + 2 * self.padding[-1] < span + self.stride[-1]
        if not (narrow and x.is_cpu) or x.dtype == torch.float64:
            return self._conv_forward(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def convolution(*args: Any, **options: Any) -> nn.Conv2d:
    """A Conv2d whose weight is g v / |v| per output channel (Salimans and Kingma, arXiv 1602.07868)."""
    return weight_norm(_Conv2d(*args, **options))
