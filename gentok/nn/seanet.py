"""SEANet (Tagliasacchi et al., arXiv 2009.02095) as SoundStream (arXiv 2107.03312) and EnCodec (arXiv 2210.13438, section 3.1) use it.

    Encoder   conv k7, C -> F;  per ratio r: {units, activation, conv k2r stride r, channels x 2};  memory, activation, conv k7 -> D
    Decoder   its mirror image, with transposed convolutions
    Unit      shortcut(x) + conv k1(act(conv k3(act(x)))), dilation base^j of unit j, half as many channels in between

Ratios are in the decoder's order: (8, 5, 4, 2) means that the encoder strides 2, 4, 5, 8. The layers are numbered as in the `encodec`
package, so that its weights have a place here (gentok/tokenizers/pretrained/encodec_keys.py). The shortcut is a 1x1 convolution there and
the identity in audiocraft; padding is reflect there and zero in audiocraft: `shortcut` and `padding` say which.

A causal network works chunk by chunk (gentok/nn/streaming.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gentok.nn.conv1d import Conv, Transposed, weight_of
from gentok.nn.recurrence import LSTM, WindowedAttention
from gentok.nn.snake import Snake
from gentok.nn.streaming import Chain, ChainLayer, StreamingModule
from gentok.settings import CheckedDataclass, Count, NonNegativeInt, PositiveInt, PositiveInts

__all__ = ["SEANetEncoder", "SEANetDecoder", "Unit"]

ACTIVATIONS = {"elu": lambda channels: nn.ELU(), "leaky_relu": lambda channels: nn.LeakyReLU(0.1), "snake": Snake}
"""leaky_relu is that of HiFi-GAN; on a CPU it takes a fortieth of the time of elu, which is a third of a training step there."""
MEMORIES = ("lstm", "attention")


@dataclass
class UnitState:
    """block: of the block's layers. ahead float [B, C, n]: what the shortcut gave and the block has not yet."""

    block: list[Any] = field(default_factory=list)
    ahead: Tensor | None = None


class Unit(StreamingModule):
    """Residual unit, float [B, width, T] -> the same shape.

    Args:
        width: channels.
        dilation: of the first convolution.
        s: of the network.
    """

    def __init__(self, width: int, dilation: int, s: SEANetSettings):
        super().__init__()
        hidden = width // s.compress
        self.block = Chain(
            s.act(width), s.conv(width, hidden, s.unit_kernel, dilation=dilation), s.act(hidden), s.conv(hidden, width, 1)
        )
        self.shortcut = s.conv(width, width, 1) if s.shortcut == "conv" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)

    def init_state(self) -> UnitState:
        return UnitState(self.block.init_state())

    def step(self, x: Tensor, state: UnitState, last: bool = False) -> Tensor:
        short = self.shortcut(x) if x.shape[2] else x
        short = short if state.ahead is None else torch.cat([state.ahead, short], 2)
        y = self.block.step(x, state.block, last)
        state.ahead = short[..., y.shape[2] :]
        return short[..., : y.shape[2]] + y


@dataclass(frozen=True)
class SEANetSettings(CheckedDataclass):
    """What both networks can be told.

    Attributes:
        channels: C, of the sound.
        width: D, of the latent.
        filters: F, channels of the first convolution.
        ratios: strides in the decoder's order; hop is their product.
        units: residual units per ratio.
        kernel: of the first convolution.
        last_kernel: of the last convolution.
        unit_kernel: of the units' dilated convolutions.
        dilation_base: unit j of a ratio is dilated by dilation_base^j.
        compress: by what the channels inside a unit are divided.
        causal: whether no output depends on a later input.
        padding: zero, replicate or reflect.
        shortcut: of the units: conv or identity.
        activation: elu, leaky_relu or snake.
        memory: lstm, attention or null.
        memory_layers: layers of the memory.
        heads: of attention.
        window: frames that a frame attends; see gentok/nn/recurrence.py.
        weight_norm: whether the convolutions are weight-normalised.

    Raises:
        ValueError: a word that is not in these lists, or no ratios.
    """

    channels: PositiveInt = 1
    width: PositiveInt = 128
    filters: PositiveInt = 32
    ratios: PositiveInts = (8, 5, 4, 2)
    units: Count = 1
    kernel: PositiveInt = 7
    last_kernel: PositiveInt = 7
    unit_kernel: PositiveInt = 3
    dilation_base: PositiveInt = 2
    compress: PositiveInt = 2
    causal: bool = True
    padding: str = "zero"
    shortcut: str = "conv"
    activation: str = "elu"
    memory: str | None = "lstm"
    memory_layers: NonNegativeInt = 2
    heads: PositiveInt = 8
    window: PositiveInt = 250
    weight_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("shortcut", ("conv", "identity")), ("activation", tuple(ACTIVATIONS)), ("memory", (*MEMORIES, None))):
            value = getattr(self, name)  # a field
            if value not in known:
                raise ValueError(f"seanet's {name} is {' or '.join('null' if k is None else k for k in known)}; got {value!r}")

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1, dilation: int = 1) -> Conv:
        return Conv(c_in, c_out, kernel, stride, dilation, causal=self.causal, padding=self.padding, normed=self.weight_norm)

    def act(self, channels: int) -> nn.Module:
        return ACTIVATIONS[self.activation](channels)

    def remember(self, channels: int) -> list[nn.Module]:
        """The memory."""
        if self.memory == "lstm":
            return [LSTM(channels, self.memory_layers)]
        attends = self.memory == "attention"
        return [WindowedAttention(channels, self.memory_layers, self.heads, self.window, self.causal)] if attends else []

    def residual(self, channels: int) -> list[nn.Module]:
        """The units of a ratio."""
        return [Unit(channels, self.dilation_base**j, self) for j in range(self.units)]


class _SEANet(ChainLayer):
    def __init__(self, **settings: Annotated[Any, SEANetSettings]):
        super().__init__()
        s = SEANetSettings(**settings)
        self.channels, self.width, self.causal, self.hop = s.channels, s.width, s.causal, math.prod(int(r) for r in s.ratios)
        self.layers = Chain(*self._layers(s))

    def _layers(self, s: SEANetSettings) -> list[nn.Module]:
        raise NotImplementedError

    @property
    def chain(self) -> Chain:
        return self.layers


class SEANetEncoder(_SEANet, id="layer/seanet_encoder"):
    """Sound float [B, channels, T], T >= 1 -> float [B, width, ceil(T / hop)].

    Args:
        settings: as in SEANetSettings.
    """

    def _layers(self, s: SEANetSettings) -> list[nn.Module]:
        n = s.filters
        layers = [s.conv(s.channels, n, s.kernel)]
        for ratio in reversed([int(r) for r in s.ratios]):
            layers += [*s.residual(n), s.act(n), s.conv(n, 2 * n, 2 * ratio, ratio)]
            n *= 2
        return [*layers, *s.remember(n), s.act(n), s.conv(n, s.width, s.last_kernel)]


class SEANetDecoder(_SEANet, id="layer/seanet_decoder"):
    """float [B, width, N], N >= 1 -> sound float [B, channels, N * hop].

    Args:
        settings: as in SEANetSettings.
    """

    def _layers(self, s: SEANetSettings) -> list[nn.Module]:
        n = s.filters * 2 ** len(s.ratios)
        layers = [s.conv(s.width, n, s.kernel), *s.remember(n)]
        for ratio in map(int, s.ratios):
            layers += [s.act(n), Transposed(n, n // 2, 2 * ratio, ratio, s.causal, s.weight_norm), *s.residual(n // 2)]
            n //= 2
        return [*layers, s.act(n), s.conv(n, s.channels, s.last_kernel)]

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's weight (its direction, where it is weight-normalised), for adaptive weights of losses."""
        return weight_of(self.layers[-1].conv)
