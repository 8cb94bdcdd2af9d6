"""The feed-forward part of a transformer's block (Vaswani et al., arXiv 1706.03762), plain or gated (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import functools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.linear import Linear

__all__ = ["FeedForward", "feed_forward_width"]


def _quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of gelu."""
    return x * (1.702 * x).sigmoid()


BENDS = {
    "swiglu": F.silu, "geglu": F.gelu, "gelu": F.gelu, "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
}  # fmt: skip
"""Activations of the feed-forward part; the first two are gates."""


def feed_forward_width(width: int, activation: str = "swiglu") -> int:
    """8/3 of the width, up to the next multiple of 64, or 4 times the width for gelu."""
    return 4 * width if "gelu" in activation else 64 * math.ceil(8 * width / 3 / 64)


class FeedForward(nn.Module):
    """swiglu: down(silu(gate x) * up x), gate and up in one matrix; geglu: gelu in its place; others: down(gelu(up x))."""

    def __init__(self, width: int, hidden: int, activation: str = "swiglu", bias: bool = False):
        super().__init__()
        if activation not in BENDS:
            raise ValueError(f"activation must be one of {', '.join(BENDS)}; got {activation!r}")
        self.gated, self.bend = activation in ("swiglu", "geglu"), BENDS[activation]
        self.up = Linear(width, hidden * (2 if self.gated else 1), bias)
        self.out = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if not self.gated:
            return self.out(self.bend(h))
        gate, value = h.chunk(2, -1)
        return self.out(self.bend(gate) * value)
