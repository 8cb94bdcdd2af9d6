"""Convolutions over time that keep lengths predictable, whole or chunk by chunk (SoundStream, arXiv 2107.03312; EnCodec, arXiv 2210.13438,
section 3.1; the padding is that of the `encodec` package).

    Conv         N = ceil(T / stride).  Padding is span - stride in all, span = (kernel - 1) * dilation + 1: causal, all of it on the left;
                 otherwise split, the larger half on the left. So many more on the right as make the last window full.
    Transposed   T = N * stride.        All that kernel and stride give, less kernel - stride samples: causal, cut off on the right;
                 otherwise on both sides, the larger half on the left.

Padding is zero, the first or last sample repeated (replicate), or the reflected beginning and end. A sound no longer than its padding has
no such reflection: it is extended by zeros on the right, reflected, and what the zeros added at the end is cut off again.

Chunk by chunk (gentok/nn/streaming.py): a causal Conv keeps the inputs that later windows need; a causal
Transposed the tail of outputs that the next input adds to, without the bias, which would be counted twice.
With reflection the first output waits for the span - stride + 1 inputs that the reflected beginning is made
of; afterwards, and with zeros from the start, nothing waits longer than for its own window. So the chunks of
a stream give what the whole gives, whatever their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from gentok.nn.streaming import StreamingModule

__all__ = ["Conv", "Transposed", "pad", "weight_of"]

PADDINGS = ("zero", "replicate", "reflect")


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Continues a sequence on both sides, by the rules above.

    Args:
        x: float [B, C, T].
        left: values before it.
        right: values behind it.
        mode: zero, replicate or reflect.

    Returns:
        float [B, C, left + T + right].
    """
    if not left and not right:
        return x
    if mode == "zero":
        return F.pad(x, (left, right))
    if mode == "replicate":
        return F.pad(x, (left, right), mode="replicate")
    missing = max(0, max(left, right) + 1 - x.shape[2])
    return F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")[..., : left + x.shape[2] + right]


def weight_of(conv: nn.Module) -> Tensor:
    """The parameter that a convolution's weight is made of: itself, or its direction where it is weight-normalised."""
    return conv.parametrizations.weight.original1 if is_parametrized(conv, "weight") else conv.weight


@dataclass
class ConvState:
    """Attributes:
    held: float [B, C, n], inputs that are still needed.
    begun: whether they follow the padding on the left.
    """

    held: Tensor | None = None
    begun: bool = False


class Conv(StreamingModule):
    """float [B, inputs, T] -> [B, outputs, ceil(T / stride)], T >= 1.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: samples of a window, before dilation.
        stride: input samples per output.
        dilation: input samples between two values of a window.
        causal: whether all padding is on the left.
        padding: zero, replicate or reflect.
        normed: whether the weight is normalised (arXiv 1602.07868), with one length per output channel.
        bias: whether a bias is added.
        groups: of channels that do not see each other.

    Raises:
        ValueError: the window is shorter than the stride, or the padding is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        padding: str = "zero",
        normed: bool = True,
        bias: bool = True,
        groups: int = 1,
    ):
        super().__init__()
        self.span, self.stride, self.causal, self.padding = (kernel - 1) * dilation + 1, stride, causal, padding
        if padding not in PADDINGS:
            raise ValueError(f"padding is one of {', '.join(PADDINGS)}; got {padding!r}")
        if self.span < stride:
            raise ValueError(f"a convolution of kernel {kernel} and dilation {dilation} leaves out samples at stride {stride}")
        conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias, groups=groups)
        self.conv = weight_norm(conv) if normed else conv

    @property
    def around(self) -> int:
        """Padding in all, without what fills the last window."""
        return self.span - self.stride

    def forward(self, x: Tensor) -> Tensor:
        extra = -x.shape[2] % self.stride
        right = 0 if self.causal else self.around // 2
        return self.conv(pad(x, self.around - right, right + extra, self.padding))

    def init_state(self) -> ConvState:
        if not self.causal:
            raise ValueError("a convolution that looks ahead cannot work chunk by chunk: build it with causal=true")
        if self.padding == "reflect" and self.span < 2 * self.stride - 1:
            raise ValueError(f"a window of {self.span} at stride {self.stride} cannot end a stream by reflection: use padding=zero")
        return ConvState()

    def step(self, x: Tensor, state: ConvState, last: bool = False) -> Tensor:
        held = x if state.held is None else torch.cat([state.held, x], 2)
        if not state.begun:
            if last:
                state.held, state.begun = held[..., :0], True
                return self.forward(held) if held.shape[2] else self._nothing(x)
            if held.shape[2] < {"zero": 0, "replicate": 1, "reflect": self.around + 1}[self.padding]:
                state.held = held
                return self._nothing(x)
            held, state.begun = pad(held, self.around, 0, self.padding), True
        new = held.shape[2] - self.around
        if last and new > 0:
            held = pad(held, 0, -new % self.stride, self.padding)
            new = held.shape[2] - self.around
        frames = max(0, new) // self.stride
        state.held = held[..., frames * self.stride :]
        return self.conv(held[..., : self.around + frames * self.stride]) if frames else self._nothing(x)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_empty(len(x), self.conv.out_channels, 0)


@dataclass
class TransposedState:
    """tail float [B, C, kernel - stride]: outputs to which the next input adds, without the bias."""

    tail: Tensor | None = None


class Transposed(StreamingModule):
    """float [B, inputs, N] -> [B, outputs, N * stride].

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: output samples that an input adds to.
        stride: output samples per input.
        causal: whether what is cut off is cut on the right.
        normed: whether the weight is normalised, with one length per input channel (as in the `encodec` package).
        groups: of channels that do not see each other.
        bias: whether a bias is added.

    Raises:
        ValueError: the window is shorter than the stride.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        causal: bool = True,
        normed: bool = True,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        if kernel < stride:
            raise ValueError(f"a transposed convolution of kernel {kernel} leaves gaps at stride {stride}")
        self.stride, self.causal, self.over = stride, causal, kernel - stride
        conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
        self.conv = weight_norm(conv) if normed else conv

    def forward(self, x: Tensor) -> Tensor:
        right = self.over if self.causal else self.over // 2
        y = self.conv(x)
        return y[..., self.over - right : y.shape[2] - right]

    def init_state(self) -> TransposedState:
        if not self.causal:
            raise ValueError("a transposed convolution that looks ahead cannot work chunk by chunk: build it with causal=true")
        return TransposedState()

    def step(self, x: Tensor, state: TransposedState, last: bool = False) -> Tensor:
        if not x.shape[2]:
            return x.new_empty(len(x), self.conv.out_channels, 0)
        y = self.conv(x)
        if state.tail is not None and self.over:
            y = torch.cat([y[..., : self.over] + state.tail, y[..., self.over :]], 2)
        whole = x.shape[2] * self.stride
        state.tail = y[..., whole:] - (0 if self.conv.bias is None else self.conv.bias[:, None].to(y))
        return y[..., :whole]
