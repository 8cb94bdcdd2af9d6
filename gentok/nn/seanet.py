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
from typing import Any

import torch
from torch import Tensor, nn

from gentok.nn.conv1d import Conv, Transposed, weight_of
from gentok.nn.recurrence import LSTM, WindowedAttention
from gentok.nn.snake import Snake
from gentok.nn.streaming import Chain, ChainLayer, StreamingModule
from gentok.settings import Count, NonNegativeInt, PositiveInt, PositiveInts

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
    """Residual unit, float [B, width, T] -> the same shape."""

    def __init__(self, width: int, kernel: int, dilation: int, compress: int, shortcut: str, activation: str, common: dict[str, Any]):
        super().__init__()
        act, hidden = ACTIVATIONS[activation], width // compress
        self.block = Chain(
            act(width), Conv(width, hidden, kernel, dilation=dilation, **common), act(hidden), Conv(hidden, width, 1, **common)
        )
        self.shortcut = Conv(width, width, 1, **common) if shortcut == "conv" else nn.Identity()

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


class _SEANet(ChainLayer):
    """Args:
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

    def __init__(
        self,
        channels: PositiveInt = 1,
        width: PositiveInt = 128,
        filters: PositiveInt = 32,
        ratios: PositiveInts = (8, 5, 4, 2),
        units: Count = 1,
        kernel: PositiveInt = 7,
        last_kernel: PositiveInt = 7,
        unit_kernel: PositiveInt = 3,
        dilation_base: PositiveInt = 2,
        compress: PositiveInt = 2,
        causal: bool = True,
        padding: str = "zero",
        shortcut: str = "conv",
        activation: str = "elu",
        memory: str | None = "lstm",
        memory_layers: NonNegativeInt = 2,
        heads: PositiveInt = 8,
        window: PositiveInt = 250,
        weight_norm: bool = True,
    ):
        super().__init__()
        for name, value, known in (
            ("shortcut", shortcut, ("conv", "identity")),
            ("activation", activation, tuple(ACTIVATIONS)),
            ("memory", memory, (*MEMORIES, None)),
        ):
            if value not in known:
                raise ValueError(f"seanet's {name} is {' or '.join('null' if k is None else k for k in known)}; got {value!r}")
        if not ratios or min(ratios) < 1:
            raise ValueError(f"seanet needs ratios of at least 1, in the decoder's order; got {tuple(ratios)}")
        self.channels, self.width, self.causal, self.hop = channels, width, causal, math.prod(int(r) for r in ratios)
        common = {"causal": causal, "padding": padding, "normed": weight_norm}
        act = ACTIVATIONS[activation]

        def remember(n: int) -> list[nn.Module]:
            if memory == "lstm":
                return [LSTM(n, memory_layers)]
            return [WindowedAttention(n, memory_layers, heads, window, causal)] if memory == "attention" else []

        def residual(n: int) -> list[nn.Module]:
            return [Unit(n, unit_kernel, dilation_base**j, compress, shortcut, activation, common) for j in range(units)]

        self.layers = Chain(*self._layers(filters, [int(r) for r in ratios], kernel, last_kernel, act, common, remember, residual))

    def _layers(self, *args: Any) -> list[nn.Module]:
        raise NotImplementedError

    @property
    def chain(self) -> Chain:
        return self.layers


class SEANetEncoder(_SEANet, id="layer/seanet_encoder"):
    __doc__ = f"Sound float [B, channels, T], T >= 1 -> float [B, width, ceil(T / hop)].\n\n    {_SEANet.__doc__}"

    def _layers(self, filters, ratios, kernel, last_kernel, act, common, remember, residual):
        n = filters
        layers = [Conv(self.channels, n, kernel, **common)]
        for ratio in reversed(ratios):
            layers += [*residual(n), act(n), Conv(n, 2 * n, 2 * ratio, ratio, **common)]
            n *= 2
        return [*layers, *remember(n), act(n), Conv(n, self.width, last_kernel, **common)]


class SEANetDecoder(_SEANet, id="layer/seanet_decoder"):
    __doc__ = f"float [B, width, N], N >= 1 -> sound float [B, channels, N * hop].\n\n    {_SEANet.__doc__}"

    def _layers(self, filters, ratios, kernel, last_kernel, act, common, remember, residual):
        n = filters * 2 ** len(ratios)
        layers = [Conv(self.width, n, kernel, **common), *remember(n)]
        for ratio in ratios:
            layers += [act(n), Transposed(n, n // 2, 2 * ratio, ratio, common["causal"], common["normed"]), *residual(n // 2)]
            n //= 2
        return [*layers, act(n), Conv(n, self.channels, last_kernel, **common)]

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's weight (its direction, where it is weight-normalised), for adaptive weights of losses."""
        return weight_of(self.layers[-1].conv)
