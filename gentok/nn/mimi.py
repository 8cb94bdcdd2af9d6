"""The networks of Mimi (Défossez et al., "Moshi", arXiv 2410.00037, section 3.3): SEANet at 25 frames per second, a transformer that sees
the past, and a last halving to 12.5.

    encoder: seanet;  transformer;  conv of kernel 4 and stride 2, without bias, its past the first frame repeated
    decoder: transposed conv of kernel 4 and stride 2, one channel at a time, without bias;  transformer;  seanet
    transformer: x + scale_1 * attention(layer_norm(x)), x + scale_2 * mlp(layer_norm(x)); no norm behind; rotary positions; gelu
                 each frame attends itself and the window - 1 frames before it; scales start at 0.01 (LayerScale, arXiv 2103.17239)

SEANet is as in audiocraft: identity around the units, zeros before the sound, kernels 7 and, last, 3, no memory; nothing is
weight-normalised. Everything is causal and works chunk by chunk; the first halving of a stream waits for no more than its own window,
since the frame that is repeated before the sound is the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentok.nn.attention import SelfAttention
from gentok.nn.block import Block
from gentok.nn.conv1d import Conv, Transposed
from gentok.nn.recurrence import RecentKeys, Seen, WindowModule
from gentok.nn.rope import Rotation
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.nn.streaming import Chain, ChainLayer
from gentok.settings import Count, PositiveInt, PositiveInts

__all__ = ["MimiDecoder", "MimiEncoder", "WindowTransformer"]

SEANET = {"kernel": 7, "last_kernel": 3, "causal": True, "padding": "zero", "shortcut": "identity", "memory": None, "weight_norm": False}
STRIDE = 2
"""Of the last halving."""


class WindowBlock(Block):
    """float [B, N, width] -> the same shape.

    Args:
        width: channels.
        heads: of attention.
        hidden: width of the MLP.
        scale: of both branches at the start.
    """

    def __init__(self, width: int, heads: int, hidden: int, scale: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, qk_norm=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))

    def forward(self, x: Tensor, rope: Rotation, mask: Tensor | None, recent: RecentKeys | None = None, layer: int = 0) -> Tensor:
        seen = {"mask": mask, "causal": mask is None} if recent is None else {"cache": recent, "layer": layer, "window": Seen(mask)}
        x = x + self.scale1 * self.attention(self.norm1(x), rope, **seen)
        return x + self.scale2 * self.mlp(self.norm2(x))


class WindowTransformer(WindowModule):
    """float [B, width, N] -> the same shape; causal.

    Args:
        width: channels.
        depth: blocks.
        heads: of attention.
        hidden: width of the MLPs.
        window: frames that a frame attends, itself and those before it.
        scale: of both branches at the start.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, width: int = 512, depth: int = 8, heads: int = 8, hidden: int = 2048, window: int = 250, scale: float = 0.01):
        super().__init__(window, depth, width // heads)
        self.blocks = nn.ModuleList(WindowBlock(width, heads, hidden, scale) for _ in range(depth))

    def _attend(self, x: Tensor, rope: Rotation, mask: Tensor | None, recent: RecentKeys | None = None) -> Tensor:
        rope = rope[0].to(x.dtype), rope[1].to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, recent, layer)
        return x


class _Mimi(ChainLayer):
    """Args:
        channels: of the sound.
        width: channels of a frame.
        filters: of SEANet.
        ratios: of SEANet, in the decoder's order.
        depth: blocks of the transformer.
        heads: of the transformer's attention.
        hidden: width of the transformer's MLPs.
        window: frames that a frame attends, itself included, counted at SEANet's rate.

    Attributes:
        hop: samples per frame, 2 * the product of the ratios.
    """

    causal = True
    order: tuple[str, ...]
    """The parts in the order of their use, which is that of their initialisation."""
    seanet_class: type[SEANetEncoder | SEANetDecoder]

    def __init__(
        self,
        channels: PositiveInt = 1,
        width: PositiveInt = 512,
        filters: PositiveInt = 64,
        ratios: PositiveInts = (8, 6, 5, 4),
        depth: Count = 8,
        heads: PositiveInt = 8,
        hidden: PositiveInt = 2048,
        window: PositiveInt = 250,
    ):
        super().__init__()
        build = {
            "seanet": lambda: self.seanet_class(channels=channels, width=width, filters=filters, ratios=ratios, **SEANET),
            "transformer": lambda: WindowTransformer(width, depth, heads, hidden, window),
            "down": lambda: Conv(width, width, 2 * STRIDE, STRIDE, padding="replicate", normed=False, bias=False),
            "up": lambda: Transposed(width, width, 2 * STRIDE, STRIDE, normed=False, groups=width, bias=False),
        }
        for name in self.order:
            self.add_module(name, build[name]())
        self.channels, self.width, self.hop = channels, width, STRIDE * self.seanet.hop

    @property
    def chain(self) -> Chain:
        return Chain(*(self.get_submodule(name) for name in self.order))


class MimiEncoder(_Mimi, id="layer/mimi_encoder"):
    __doc__ = f"Sound float [B, channels, T], T >= 1 -> float [B, width, ceil(T / hop)].\n\n    {_Mimi.__doc__}"

    order = ("seanet", "transformer", "down")
    seanet_class = SEANetEncoder


class MimiDecoder(_Mimi, id="layer/mimi_decoder"):
    __doc__ = f"float [B, width, N], N >= 1 -> sound float [B, channels, N * hop].\n\n    {_Mimi.__doc__}"

    order = ("up", "transformer", "seanet")
    seanet_class = SEANetDecoder

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's weight, where gradients of losses are compared (adaptive weights)."""
        return self.seanet.last_layer
