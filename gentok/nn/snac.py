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

from typing import Annotated, Any

from torch import Tensor, nn

from gentok.nn.dac import DACEncoder, HalvingDecoder, normed_conv, units, up_conv
from gentok.nn.snake import Snake
from gentok.rng import RowRNG
from gentok.settings import PositiveInt

__all__ = ["NoiseBlock", "SNACDecoder", "SNACEncoder"]


class SNACEncoder(DACEncoder, id="layer/snac_encoder"):
    """A DACEncoder of depthwise units, without the last snake.

    Args:
        filters, sizes: as of DACEncoder.
    """

    depthwise = True

    def __init__(self, filters: PositiveInt = 48, **sizes: Annotated[Any, DACEncoder]):
        super().__init__(filters=filters, **sizes)

    @staticmethod
    def ends(last: int, width: int) -> list[nn.Module]:
        return [normed_conv(last, last, 7, groups=last), *([] if width == last else [normed_conv(last, width, 1)])]


class NoiseBlock(nn.Module):
    """float [B, channels, T] -> the same shape: x + n * conv1(x), n drawn from `rng`, 0 without.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.scale = normed_conv(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, rng: RowRNG | None = None) -> Tensor:
        if rng is None:
            return x
        return x + rng.normal(1, x.shape[2]).to(x.device, x.dtype) * self.scale(x)


class SNACDecoder(HalvingDecoder, id="layer/snac_decoder"):
    """A HalvingDecoder of depthwise units.

    Args:
        width, filters, sound: as of HalvingDecoder.
        noise: whether there are noise blocks.
    """

    takes_rng = True

    def __init__(self, width: PositiveInt = 768, filters: PositiveInt = 1024, noise: bool = True, **sound: Annotated[Any, HalvingDecoder]):
        super().__init__(width, filters, **sound)
        layers: list[nn.Module] = [normed_conv(width, width, 7, groups=width), normed_conv(width, filters, 1)]
        for c_in, c_out, ratio in self.stages:
            layers += [Snake(c_in), up_conv(c_in, c_out, ratio, fill_odd=True), *([NoiseBlock(c_out)] if noise else [])]
            layers += units(c_out, depthwise=True)
        self.layers = nn.ModuleList([*layers, *self.ends()])

    def forward(self, z: Tensor, rng: RowRNG | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            z = layer(z, None if rng is None else rng.fork(i)) if isinstance(layer, NoiseBlock) else layer(z)
        return z
