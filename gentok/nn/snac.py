"""The networks of SNAC (Siuzdak et al., "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411, section 3): DAC's, made small.

    unit:    DAC's, its dilated convolution one channel at a time (depthwise)
    encoder: conv7;  per ratio r: three units, snake, conv of kernel 2r and stride r;  depthwise conv7
    decoder: depthwise conv7, conv1;  per ratio r: snake, transposed conv of kernel 2r, noise, three units;  snake, conv7, tanh
    noise:   x + n * conv1(x), one normal number n per sample: what no code says of hiss and breath the network may draw

The parts are those of gentok/nn/dac.py; odd ratios keep their sample (`fill_odd`).

Deviations: without `rng` n is 0, so that decoding is the same twice; the release draws always. The local attention of its models
of 32 and 44.1 kHz is not here. Where the encoder is given another width than its last stage's, a convolution of kernel 1 leads there.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from gentok.interfaces import Layer
from gentok.nn.conv1d import weight_of
from gentok.nn.dac import DACEncoder, check_halved, normed_conv, units, up_conv
from gentok.nn.snake import Snake
from gentok.rng import RowRNG
from gentok.settings import PositiveInt, PositiveInts

__all__ = ["NoiseBlock", "SNACDecoder", "SNACEncoder"]


class SNACEncoder(DACEncoder, id="layer/snac_encoder"):
    """As DACEncoder, of depthwise units, without the last snake."""

    depthwise = True

    def __init__(
        self,
        channels: PositiveInt = 1,
        filters: PositiveInt = 48,
        ratios: PositiveInts = (8, 8, 4, 2),
        width: PositiveInt | None = None,
    ):
        super().__init__(channels, filters, ratios, width)

    @staticmethod
    def ends(last: int, width: int) -> list[nn.Module]:
        return [normed_conv(last, last, 7, groups=last), *([] if width == last else [normed_conv(last, width, 1)])]


class NoiseBlock(nn.Module):
    """float [B, C, T] -> the same shape: x + n * conv1(x), n drawn from `rng`, 0 without."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = normed_conv(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, rng: RowRNG | None = None) -> Tensor:
        if rng is None:
            return x
        return x + rng.normal(1, x.shape[2]).to(x.device, x.dtype) * self.scale(x)


class SNACDecoder(nn.Module, Layer, id="layer/snac_decoder"):
    """float [B, width, N], N >= 1 -> sound float [B, channels, N * hop] in (-1, 1).

    filters: channels behind the first convolutions, which every ratio halves. ratios: in the order of their use. noise: with noise blocks.
    Raises ValueError where filters cannot be halved so often.
    """

    causal = False
    takes_rng = True

    def __init__(
        self,
        width: PositiveInt = 768,
        channels: PositiveInt = 1,
        filters: PositiveInt = 1024,
        ratios: PositiveInts = (8, 8, 4, 2),
        noise: bool = True,
    ):
        super().__init__()
        check_halved(filters, ratios)
        self.channels, self.hop, self.width = channels, math.prod(int(r) for r in ratios), width
        layers = [normed_conv(width, width, 7, groups=width), normed_conv(width, filters, 1)]
        for i, ratio in enumerate(ratios):
            c_in, c_out = filters // 2**i, filters // 2 ** (i + 1)
            layers += [Snake(c_in), up_conv(c_in, c_out, int(ratio), fill_odd=True), *([NoiseBlock(c_out)] if noise else [])]
            layers += units(c_out, depthwise=True)
        last = filters // 2 ** len(ratios)
        self.layers = nn.ModuleList([*layers, Snake(last), normed_conv(last, channels, 7), nn.Tanh()])

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's direction, where gradients of losses are compared (adaptive weights)."""
        return weight_of(self.layers[-2])

    def forward(self, z: Tensor, rng: RowRNG | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            z = layer(z, None if rng is None else rng.fork(i)) if isinstance(layer, NoiseBlock) else layer(z)
        return z
