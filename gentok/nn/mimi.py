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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentok.interfaces import Layer
from gentok.nn.attention import SelfAttention
from gentok.nn.conv1d import Chain, Conv, Transposed, weight_of
from gentok.nn.recurrence import RecentKeys, Seen, window_mask
from gentok.nn.rope import rotation
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder

__all__ = ["MimiDecoder", "MimiEncoder", "WindowTransformer"]

SEANET = {"kernel": 7, "last_kernel": 3, "causal": True, "padding": "zero", "shortcut": "identity", "memory": None, "weight_norm": False}
STRIDE = 2
"""Of the last halving."""


class WindowBlock(nn.Module):
    """float [B, N, width] -> the same shape."""

    def __init__(self, width: int, heads: int, hidden: int, scale: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, qk_norm=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, recent: RecentKeys | None = None, layer: int = 0
    ) -> Tensor:
        seen = {"mask": mask, "causal": mask is None} if recent is None else {"cache": recent, "layer": layer, "window": Seen(mask)}
        x = x + self.scale1 * self.attention(self.norm1(x), turn, **seen)
        return x + self.scale2 * self.mlp(self.norm2(x))


class WindowTransformer(nn.Module):
    """float [B, width, N] -> the same shape; causal. window: frames that a frame attends, itself and those before it."""

    def __init__(self, width: int = 512, depth: int = 8, heads: int = 8, hidden: int = 2048, window: int = 250, scale: float = 0.01):
        super().__init__()
        if window < 1:
            raise ValueError(f"attention needs a window of at least the frame itself; got {window}")
        self.window, self.head_width = window, width // heads
        self.blocks = nn.ModuleList(WindowBlock(width, heads, hidden, scale) for _ in range(depth))

    def _through(self, x: Tensor, mask: Tensor | None, first: int = 0, recent: RecentKeys | None = None) -> Tensor:
        place = torch.arange(first, first + x.shape[2], device=x.device)
        cos, sin = rotation(place[:, None], head_width=self.head_width)
        turn, x = (cos.to(x.dtype), sin.to(x.dtype)), x.transpose(1, 2)
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, mask, recent, layer)
        return x.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        return self._through(x, window_mask(self.window, 0, 0, frames, x.device) if frames > self.window else None)

    def start(self) -> RecentKeys:
        return RecentKeys(self.window - 1, len(self.blocks))

    def step(self, x: Tensor, state: RecentKeys, last: bool) -> Tensor:
        frames, first = x.shape[2], state.seen
        if not frames:
            return x
        state.seen += frames
        return self._through(x, window_mask(self.window, first, min(first, state.keep), frames, x.device), first, state)


class _Half(nn.Module, Layer):
    """Parts in a row, whole or chunk by chunk."""

    causal = True

    def parts(self) -> Chain:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.parts()(x)

    def start(self) -> list[Any]:
        """The state of a stream."""
        return self.parts().start()

    def step(self, x: Tensor, state: list[Any], last: bool = False) -> Tensor:
        """The next chunk of a stream; see gentok/nn/conv1d.py."""
        return self.parts().step(x, state, last)


class MimiEncoder(_Half, id="layer/mimi_encoder"):
    """Sound float [B, channels, T], T >= 1 -> float [B, width, ceil(T / hop)], hop = 2 * the product of the ratios.

    filters, ratios: of SEANet (in the decoder's order). depth, heads, hidden, window: of the transformer, in frames before the halving.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 512,
        filters: int = 64,
        ratios: Sequence[int] = (8, 6, 5, 4),
        depth: int = 8,
        heads: int = 8,
        hidden: int = 2048,
        window: int = 250,
    ):
        super().__init__()
        self.seanet = SEANetEncoder(channels, width, filters, ratios, **SEANET)
        self.transformer = WindowTransformer(width, depth, heads, hidden, window)
        self.down = Conv(width, width, 2 * STRIDE, STRIDE, padding="replicate", normed=False, bias=False)
        self.channels, self.width, self.hop = channels, width, STRIDE * self.seanet.hop

    def parts(self) -> Chain:
        return Chain(self.seanet, self.transformer, self.down)


class MimiDecoder(_Half, id="layer/mimi_decoder"):
    """float [B, width, N], N >= 1 -> sound float [B, channels, N * hop]; the rest as in MimiEncoder."""

    def __init__(
        self,
        channels: int = 1,
        width: int = 512,
        filters: int = 64,
        ratios: Sequence[int] = (8, 6, 5, 4),
        depth: int = 8,
        heads: int = 8,
        hidden: int = 2048,
        window: int = 250,
    ):
        super().__init__()
        self.up = Transposed(width, width, 2 * STRIDE, STRIDE, normed=False, groups=width, bias=False)
        self.transformer = WindowTransformer(width, depth, heads, hidden, window)
        self.seanet = SEANetDecoder(channels, width, filters, ratios, **SEANET)
        self.channels, self.width, self.hop = channels, width, STRIDE * self.seanet.hop

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's weight, where gradients of losses are compared (adaptive weights)."""
        return weight_of(self.seanet.layers[-1].conv)

    def parts(self) -> Chain:
        return Chain(self.up, self.transformer, self.seanet)
