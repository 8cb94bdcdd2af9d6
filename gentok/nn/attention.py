"""Multi-head attention: of a sequence to itself (rotary, QK-normalised, cached or not) and to a context.

Scaled dot product attention (Vaswani et al., arXiv 1706.03762) with RMS-normalised queries and keys (Dehghani et al., arXiv 2302.05442;
Henry et al., arXiv 2010.04245), or with cosines: scores scale * cos(q, k) with a learned scale per head, at most 100 (Liu et al., Swin V2,
arXiv 2111.09883; as in VAR, arXiv 2404.02905). torch's fused kernel is used except for short sequences on the CPU, where its backward is
five times slower than the written-out product (22 against 4 ms for 64 x 64 tokens of width 256 in bfloat16).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear
from gentok.nn.norm import constant, rms_norm
from gentok.nn.rope import Rotation, rotate
from gentok.precision import exporting

__all__ = ["SelfAttention", "CrossAttention", "attend"]

_EXPLICIT_SCORES = 256 * 256
"""Up to so many scores per head, attention on the CPU is written out."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot product attention of several heads.

    Args:
        q: float [B, H, S, d].
        k: float [B, H, T, d].
        v: float [B, H, T, d].
        mask: bool, broadcastable to [B, H, S, T], True where seen; None: everything.
        causal: whether row i sees the columns up to i alone.

    Returns:
        float [B, H, S, d].
    """
    if not q.is_cpu or exporting() or q.shape[2] * k.shape[2] > _EXPLICIT_SCORES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    batch, heads, steps, width = q.shape
    flat = (batch * heads, -1, width)
    q, k, v = q.reshape(flat), k.reshape(flat), v.reshape(flat)
    if steps == 1 and mask is None and not torch.is_grad_enabled():
        return torch.bmm(torch.bmm(q * constant(width**-0.5, q.dtype), k.transpose(1, 2)).softmax(-1), v).view(batch, heads, 1, width)
    if causal:
        bias = q.new_full((steps, k.shape[1]), float("-inf")).triu_(1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=width**-0.5)
    else:
        scores = torch.bmm(q * width**-0.5, k.transpose(1, 2))
        if mask is not None:
            scores = scores.view(batch, heads, steps, -1).masked_fill(~mask, float("-inf")).view(batch * heads, steps, -1)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, steps, width)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself.

    Args:
        width: D.
        heads: of D / heads channels each.
        qk_norm: whether queries and keys are RMS-normalised; "cosine": scores are scaled cosines; "layer": by a LayerNorm.
        bias: whether the two linear layers have one.

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool | Literal["cosine", "layer"] = True, bias: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"the width must be a multiple of the heads; got width {width}, heads {heads}")
        self.heads, self.head_width = heads, width // heads
        self.qkv = Linear(width, 3 * width, bias)
        self.out = Linear(width, width, bias)
        self.cosine = qk_norm == "cosine"
        # One vector, so that "decay what has two dimensions" leaves it alone: queries' weights, then keys'; or the heads' log scales.
        start = torch.full((heads,), math.log(4.0)) if self.cosine else torch.ones(2 * self.head_width)
        self.qk_scale = nn.Parameter(start) if qk_norm else None
        self.qk_shift = nn.Parameter(torch.zeros(2 * self.head_width)) if qk_norm == "layer" else None
        self.qk_eps = 1e-6

    @property
    def qk_weight(self) -> Tensor | None:
        """What normalised queries and keys are multiplied by, float [2, H or 1, d or 1]; None: they are not normalised."""
        if self.qk_scale is None or not self.cosine:
            return None if self.qk_scale is None else self.qk_scale.view(2, 1, -1)
        # of vectors of length sqrt(d) each, whose products are divided by sqrt(d)
        scale = self.qk_scale.clamp(max=math.log(100.0)).exp() * self.head_width**-0.5
        return torch.stack((scale, torch.ones_like(scale)))[..., None]

    def forward(
        self,
        x: Tensor,
        rope: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
        window: Window | None = None,
    ) -> Tensor:
        """Attention of a sequence to itself.

        Args:
            x: float [B, T, D]; with a cache, the steps of `window` alone.
            rope: rotation of x's tokens; None: none.
            mask: bool, broadcastable to [B, H, T, T], True where seen.
            causal: whether a token sees only itself and earlier ones.
            cache: keys and values of earlier steps.
            layer: number of this layer in the cache.
            window: the steps that x holds, and their mask; with a cache.

        Returns:
            float [B, T, D].
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if self.qk_shift is not None:
            qk = F.layer_norm(qk, (self.head_width,), eps=self.qk_eps) * self.qk_weight + self.qk_shift.view(2, 1, -1)
        elif self.qk_scale is not None:
            qk = rms_norm(qk, self.qk_weight, self.qk_eps)
        if rope is not None:
            qk = rotate(qk, rope)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k, v = cache.write(layer, k, v, window)
            mask, causal = window.mask, window.causal
        y = attend(q, k, v, mask, causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class CrossAttention(nn.Module):
    """Queries from a sequence, keys and values from a context, which are computed once by `project`.

    Args:
        width: D, of both.
        heads: of D / heads channels each.
        qk_norm: whether queries and keys are RMS-normalised.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool | Literal["cosine"] = True):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)
        self.q_scale = nn.Parameter(torch.ones(self.head_width)) if qk_norm else None
        self.k_scale = nn.Parameter(torch.ones(self.head_width)) if qk_norm else None

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context [B, L, D] -> keys and values [B, H, L, d]."""
        batch, length, _ = context.shape
        k, v = self.key_value(context).view(batch, length, 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        return (k if self.k_scale is None else rms_norm(k, self.k_scale)), v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """x [B, T, D], mask bool [B, 1, 1, L] -> [B, T, D]."""
        batch, length, width = x.shape
        q = self.query(x).view(batch, length, self.heads, self.head_width).transpose(1, 2)
        q = q if self.q_scale is None else rms_norm(q, self.q_scale)
        y = attend(q, *keys_values, mask)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))
