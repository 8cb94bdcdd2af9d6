"""One call of a causal transformer over its cache, where nothing is trained: the same operations as its blocks, in the same order, without
what a module costs around each of them (calls, look-ups of attributes, numbers that become tensors).

At 6 layers of width 128 that is a third of a step, at 12 of width 768 some per cent. Blocks with cross-attention, modulation,
biases or LayerNorm, and autocast, go the usual way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.attention import attend
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear, packed_product, pays_to_pack, product, widens
from gentok.nn.norm import RMSNorm, constant
from gentok.nn.rope import Rotation, rotate

__all__ = ["PlainBlock", "plain_blocks"]

_Map = Callable[[Tensor], Tensor]


def _map(layer: nn.Module, rows: int) -> _Map:
    """A linear layer as a function of so many rows at a time."""
    if isinstance(layer, Linear):
        if pays_to_pack(layer.weight, rows):
            return packed_product(layer.weight, rows)
        return functools.partial(product if widens(layer.weight) else F.linear, weight=layer.weight)
    return layer.forward


def _normalised(x: Tensor, weight: Tensor, width: Tensor, eps: Tensor) -> Tensor:
    """As nn.norm.rms_norm, on the CPU; width: 1 / D."""
    norm = torch.linalg.vector_norm(x, 2, -1, True)
    return (x * norm.square_().mul_(width).add_(eps).rsqrt_()).mul_(weight)


class PlainBlock(NamedTuple):
    """A block of nn.transformer: weights as functions, norms' weights in the type of the activations."""

    norm1: Tensor
    qkv: _Map
    qk_scale: Tensor | None
    out: _Map
    norm2: Tensor
    up: _Map
    down: _Map
    gated: bool
    heads: int
    over_width: Tensor
    over_head: Tensor
    eps: Tensor

    def __call__(self, x: Tensor, rope: Rotation | None, cache: KVCache, layer: int, window: Window) -> Tensor:
        """x float [B, S, D], the steps of `window` -> [B, S, D]; their keys and values go into the cache."""
        batch, steps, width = x.shape
        qkv = self.qkv(_normalised(x, self.norm1, self.over_width, self.eps)).view(batch, steps, 3, self.heads, -1)
        qk = qkv.narrow(2, 0, 2)
        if self.qk_scale is not None:
            qk = _normalised(qk, self.qk_scale, self.over_head, self.eps)
        if rope is not None:
            qk = rotate(qk, rope)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        k, v = cache.write(layer, k, qkv.select(2, 2).transpose(1, 2), window)
        y = attend(q, k, v, window.mask, window.causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, steps, width))
        h = self.up(_normalised(x, self.norm2, self.over_width, self.eps))
        if not self.gated:
            return self.down(F.gelu(h)).add_(x)
        gate, value = h.chunk(2, -1)
        return self.down(F.silu(gate).mul_(value)).add_(x)


def plain_blocks(blocks: nn.ModuleList, x: Tensor, rows: int = 1) -> list[PlainBlock] | None:
    """The blocks of a transformer for activations like x, or None where they are not plain, are trained, or not on the CPU.

    rows: of a usual call. For some to many of them large float32 weights are packed, in a copy.
    """
    if torch.is_grad_enabled() or not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return None
    made = []
    for block in blocks:
        if block.cross is not None or block.modulation is not None or block.mlp.bend is not (F.silu if block.mlp.gated else F.gelu):
            return None
        if not isinstance(block.norm1, RMSNorm) or block.post_norm:
            return None
        if block.attention.qkv.bias is not None or block.attention.qk_shift is not None:
            return None
        attention, scale = block.attention, block.attention.qk_weight
        norms: tuple[RMSNorm, RMSNorm] = (block.norm1, block.norm2)
        made.append(PlainBlock(
            norms[0].weight.to(x.dtype), _map(attention.qkv, rows), None if scale is None else scale.to(x.dtype),
            _map(attention.out, rows), norms[1].weight.to(x.dtype), _map(block.mlp.up, rows), _map(block.mlp.out, rows),
            block.mlp.gated, attention.heads,
            constant(1.0 / x.shape[-1], x.dtype), constant(1.0 / attention.head_width, x.dtype), constant(norms[0].eps, x.dtype),
        ))  # fmt: skip
    return made
