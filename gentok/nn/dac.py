"""The networks of the Descript Audio Codec (Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", arXiv 2306.06546).

    unit:    x + conv1(snake(conv7_dilated(snake(x))))                                       dilations 1, 3, 9
    encoder: conv7;  per ratio r: three units, snake, conv of kernel 2r and stride r;  snake, conv3
    decoder: conv7;  per ratio r: snake, transposed conv of kernel 2r and stride r, three units;  snake, conv7, tanh

Ratios are in the decoder's order, as everywhere here: the encoder takes them from the last to the first. Channels double with every ratio
down and halve with every ratio up. All convolutions are weight-normalised and pad zeros on both sides
alike, ceil(r / 2) at a ratio r: the network sees the future and does not stream.

Kernels keep torch's own start, biases of plain convolutions start at 0. The release also draws kernels from a normal of 0.02, but behind
the weight norm, which computes the kernel anew at every call: the draw has no effect, and this is what it trains from.

An odd ratio makes the transposed convolution one sample too short. In the released decoder this stays so and the end is missing (8
samples at ratios 8, 5, 4, 2); here they are zeros, so that N frames always give N * hop samples. `fill_odd` adds the sample, as SNAC does.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gentok.interfaces import Layer
from gentok.nn.conv1d import weight_of
from gentok.nn.snake import Snake
from gentok.settings import PositiveInt, PositiveInts

__all__ = ["DACDecoder", "DACEncoder", "HalvingDecoder", "ResidualUnit", "down_stage", "normed_conv", "units", "up_conv"]


def normed_conv(c_in: int, c_out: int, kernel: int, *, stride: int = 1, dilation: int = 1, padding: int | None = None, groups: int = 1,
                bias: bool = True) -> nn.Conv1d:  # fmt: skip
    """A weight-normalised convolution, its bias 0 at the start.

    Args:
        c_in: channels.
        c_out: channels.
        kernel: samples of a window, before dilation.
        stride: input samples per output.
        dilation: input samples between two values of a window.
        padding: zeros on either side; None: as many as keep the length.
        groups: of channels that do not see each other.
        bias: whether there is one.
    """
    padding = (kernel - 1) * dilation // 2 if padding is None else padding
    conv = nn.Conv1d(c_in, c_out, kernel, stride, padding, dilation, groups, bias)
    if bias:
        nn.init.zeros_(conv.bias)
    return weight_norm(conv)


def up_conv(c_in: int, c_out: int, stride: int, fill_odd: bool = False) -> nn.ConvTranspose1d:
    """A weight-normalised transposed convolution of kernel 2 * stride: N frames to N * stride.

    Args:
        c_in: channels.
        c_out: channels.
        stride: outputs per input.
        fill_odd: where false, an odd stride makes one sample less.
    """
    return weight_norm(nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride, math.ceil(stride / 2), stride % 2 if fill_odd else 0))


class ResidualUnit(nn.Module):
    """float [B, channels, T] -> the same shape.

    Args:
        channels: of the sound's features.
        dilation: of the first convolution.
        depthwise: whether that convolution sees one channel at a time (SNAC).
    """

    def __init__(self, channels: int, dilation: int, depthwise: bool = False):
        super().__init__()
        self.layers = nn.Sequential(
            Snake(channels),
            normed_conv(channels, channels, 7, dilation=dilation, groups=channels if depthwise else 1),
            Snake(channels),
            normed_conv(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def units(channels: int, depthwise: bool = False) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation, depthwise) for dilation in (1, 3, 9)]


def down_stage(c_in: int, stride: int, depthwise: bool = False) -> nn.Sequential:
    """The units of a ratio and its convolution: float [B, c_in, T] -> [B, 2 c_in, T / stride].

    Args:
        c_in: channels.
        stride: the ratio, which must divide T.
        depthwise: as of ResidualUnit.
    """
    down = normed_conv(c_in, 2 * c_in, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return nn.Sequential(*units(c_in, depthwise), Snake(c_in), down)


class DACEncoder(nn.Module, Layer, id="layer/dac_encoder"):
    """Sound float [B, channels, T], T >= 1 -> float [B, width, ceil(T / hop)]; hop is the product of the ratios.

    The sound is continued with zeros to a whole number of frames. A subclass may say what its units and last layers are.

    Args:
        channels: of the sound.
        filters: channels of the first convolution.
        ratios: strides in the decoder's order.
        width: channels of a frame; None: filters * 2^(number of ratios), as published.
    """

    causal = False
    depthwise = False

    def __init__(
        self,
        channels: PositiveInt = 1,
        filters: PositiveInt = 64,
        ratios: PositiveInts = (8, 8, 4, 2),
        width: PositiveInt | None = None,
    ):
        super().__init__()
        last = filters * 2 ** len(ratios)
        self.channels, self.hop, self.width = channels, math.prod(int(r) for r in ratios), width or last
        stages = [down_stage(filters * 2**i, int(ratio), self.depthwise) for i, ratio in enumerate(reversed(ratios))]
        self.layers = nn.Sequential(normed_conv(channels, filters, 7), *stages, *self.ends(last, self.width))

    @staticmethod
    def ends(last: int, width: int) -> list[nn.Module]:
        """What leads from the last stage's channels to the frame's."""
        return [Snake(last), normed_conv(last, width, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(F.pad(x, (0, -x.shape[2] % self.hop)))


class HalvingDecoder(nn.Module, Layer):
    """float [B, width, N], N >= 1 -> sound float [B, channels, N * hop] in (-1, 1). A subclass builds `layers`.

    Args:
        width: channels of a frame.
        channels: of the sound.
        filters: channels behind the first convolutions, which every ratio halves.
        ratios: strides in the order of their use; hop is their product.

    Raises:
        ValueError: filters cannot be halved so often.
    """

    causal = False
    layers: nn.Sequential | nn.ModuleList

    def __init__(self, width: PositiveInt, filters: PositiveInt, channels: PositiveInt = 1, ratios: PositiveInts = (8, 8, 4, 2)):
        super().__init__()
        if filters % 2 ** len(ratios):
            raise ValueError(f"a decoder halves its filters at every ratio: {filters} is no multiple of {2 ** len(ratios)}")
        self.channels, self.hop, self.width = channels, math.prod(int(r) for r in ratios), width
        self.stages = [(filters // 2**i, filters // 2 ** (i + 1), int(ratio)) for i, ratio in enumerate(ratios)]
        """Channels before and behind a ratio, and the ratio."""

    def ends(self) -> list[nn.Module]:
        """What leads from the last ratio's channels to the sound."""
        last = self.stages[-1][1]
        return [Snake(last), normed_conv(last, self.channels, 7), nn.Tanh()]

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's direction, where gradients of losses are compared (adaptive weights)."""
        return weight_of(self.layers[-2])


class DACDecoder(HalvingDecoder, id="layer/dac_decoder"):
    """A HalvingDecoder.

    Args:
        width, filters, sound: as of HalvingDecoder.
        fill_odd: see above.
    """

    def __init__(
        self, width: PositiveInt = 1024, filters: PositiveInt = 1536, fill_odd: bool = False, **sound: Annotated[Any, HalvingDecoder]
    ):
        super().__init__(width, filters, **sound)
        stages = [nn.Sequential(Snake(c_in), up_conv(c_in, c_out, ratio, fill_odd), *units(c_out)) for c_in, c_out, ratio in self.stages]
        self.layers = nn.Sequential(normed_conv(width, filters, 7), *stages, *self.ends())

    def forward(self, z: Tensor) -> Tensor:
        x = self.layers(z)
        return F.pad(x, (0, z.shape[2] * self.hop - x.shape[2]))
