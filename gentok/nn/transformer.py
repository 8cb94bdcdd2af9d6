"""The transformer that every token generator uses: causal or bidirectional, LLaMA-like (Touvron et al., arXiv 2302.13971).

Pre-norm blocks of RMSNorm, self-attention (rotary, QK-norm) and SwiGLU (Shazeer, arXiv 2002.05202), without biases; optionally
cross-attention to a context, and adaLN-zero on a vector (Peebles and Xie, DiT, arXiv 2212.09748): shift, scale and gate of both branches
from SiLU(vector), zero at the start, so that every block begins as the identity. Tokens of several kinds in one sequence (FlexTok: patches
and registers, arXiv 2502.13967) may each have a modulation of their own.

Initialisation: truncated normal, 0.02; projections back into the residual stream 0.02 / sqrt(2 depth) (GPT-2).
Dropout of the branches draws from the rows' own RowRNG: 16 random bits per element, so its rate is a multiple of 2^-16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.attention import CrossAttention, SelfAttention
from gentok.nn.block import Block
from gentok.nn.decoding import plain_blocks
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear, activations
from gentok.nn.norm import RMSNorm
from gentok.nn.rope import Rotation, widened
from gentok.rng import RowRNG

__all__ = ["FeedForward", "Transformer", "TransformerBlock", "dropout", "initialise", "shifted"]


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Linear and embedding weights truncated normal (at two deviations), biases zero."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)


def dropout(x: Tensor, rate: float, rng: RowRNG | None) -> Tensor:
    """x float [B, ...]; elements are zeroed with probability `rate`, the others scaled by 1 / (1 - rate). rng None: x itself."""
    if rate == 0.0 or rng is None:
        return x
    count = x[0].numel()
    bits = rng.words(math.ceil(count / 4)).view(torch.int16)[:, :count].view(x.shape)
    return x * (bits >= round(rate * 65536) - 32768).to(x.dtype).mul_(1.0 / (1.0 - rate))


class FeedForward(nn.Module):
    """swiglu: down(silu(gate x) * up x), gate and up in one matrix; geglu: gelu in its place; gelu: down(gelu(up x))."""

    def __init__(self, width: int, hidden: int, activation: str = "swiglu", bias: bool = False):
        super().__init__()
        if activation not in ("swiglu", "geglu", "gelu"):
            raise ValueError(f"activation must be swiglu, geglu or gelu; got {activation!r}")
        self.gated, self.bend = activation != "gelu", F.silu if activation == "swiglu" else F.gelu
        self.up = Linear(width, hidden * (2 if self.gated else 1), bias)
        self.out = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if not self.gated:
            return self.out(self.bend(h))
        gate, value = h.chunk(2, -1)
        return self.out(self.bend(gate) * value)


def shifted(x: Tensor, shift: Tensor, scale: Tensor, kinds: Sequence[int] | None) -> Tensor:
    """x (1 + scale) + shift for x [B, T, D], shift and scale [B, S, D]; kinds: how many tokens each of the S kinds has, in turn."""
    if kinds is None:
        return torch.addcmul(x + shift, x, scale)
    parts = zip(x.split(kinds, 1), shift.split(1, 1), scale.split(1, 1))
    return torch.cat([torch.addcmul(part + b, part, a) for part, b, a in parts], 1)


def _gated(x: Tensor, gate: Tensor, kinds: Sequence[int] | None) -> Tensor:
    """x gate, as in shifted."""
    if kinds is None:
        return x * gate
    return torch.cat([part * g for part, g in zip(x.split(kinds, 1), gate.split(1, 1))], 1)


class TransformerBlock(Block):
    """x + attention(norm x), x + cross(norm x), x + mlp(norm x). bias: of the linear layers of the first and the last."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: str, qk_norm: bool | Literal["cosine"], adaln: int, cross: bool,
        rate: float, bias: bool = False,
    ):
        super().__init__()
        self.rate, self.kinds = rate, int(adaln)
        self.norm1 = RMSNorm(width, affine=not adaln)
        self.attention = SelfAttention(width, heads, qk_norm, bias)
        self.norm_cross = RMSNorm(width) if cross else None
        self.cross = CrossAttention(width, heads, qk_norm) if cross else None
        self.norm2 = RMSNorm(width, affine=not adaln)
        self.mlp = FeedForward(width, hidden, activation, bias)
        self.modulation = nn.Linear(width, 6 * self.kinds * width) if adaln else None

    def modulate(self, vector: Tensor) -> Tensor:
        """vector [B, D], or [B, S, D] with one for each of S groups of tokens -> shift, scale and gate of both branches, [6, B, S, D];
        of one vector for S kinds of tokens, by a map of its own for each."""
        out = activations(self.modulation(F.silu(vector)))
        if vector.dim() == 3:
            return out.unflatten(2, (6, -1)).permute(2, 0, 1, 3)
        return out.unflatten(1, (6, self.kinds, -1)).transpose(0, 1)

    def forward(
        self,
        x: Tensor,
        rope: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        modulation: Tensor | None = None,
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        context_mask: Tensor | None = None,
        rng: RowRNG | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        window: Window | None = None,
        kinds: Sequence[int] | None = None,
        vector: Tensor | None = None,
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]; vector or its modulation; context or its keys and values; the rest as in Transformer."""
        modulation = modulation if vector is None else self.modulate(vector)
        context = self.cross.project(context) if isinstance(context, Tensor) else context
        h = self.norm1(x)
        if modulation is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(0)
            h = shifted(h, shift1, scale1, kinds)
        h = self.attention(h, rope, mask, causal, cache, layer, window)
        x = x + dropout(h if modulation is None else _gated(h, gate1, kinds), self.rate, rng)
        if self.cross is not None:
            x = x + dropout(self.cross(self.norm_cross(x), context, context_mask), self.rate, rng)
        h = self.norm2(x)
        if modulation is not None:
            h = shifted(h, shift2, scale2, kinds)
        h = self.mlp(h)
        return x + dropout(h if modulation is None else _gated(h, gate2, kinds), self.rate, rng)


class Transformer(nn.Module):
    """Blocks of attention and feed-forward networks, and a last norm.

    Args:
        width: D.
        depth: blocks.
        heads: of attention.
        hidden: width of the feed-forward part; None: 8/3 D, up to the next multiple of 64, or 4 D for gelu.
        causal: whether a token sees only itself and earlier ones.
        activation: swiglu or gelu.
        qk_norm: whether queries and keys are RMS-normalised; "cosine": see nn/attention.py.
        adaln: whether blocks are modulated by a vector [B, D]; above 1: the number of kinds of tokens, each modulated by itself.
        cross: whether blocks attend to a context [B, L, D].
        dropout: rate, of both branches.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        causal: bool = True,
        activation: str = "swiglu",
        qk_norm: bool | Literal["cosine"] = True,
        adaln: bool | int = False,
        cross: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if hidden is None:
            hidden = 4 * width if activation == "gelu" else 64 * math.ceil(8 * width / 3 / 64)
        self.width, self.depth, self.heads, self.causal = width, depth, heads, causal
        settings = (width, heads, hidden, activation, qk_norm, adaln, cross, dropout)
        self.blocks = nn.ModuleList(TransformerBlock(*settings) for _ in range(depth))
        self.norm = RMSNorm(width)
        initialise(self)
        std = 0.02 / math.sqrt(2 * depth)
        for block in self.blocks:
            for part in (block.attention, block.mlp, block.cross):
                if part is not None:
                    nn.init.trunc_normal_(part.out.weight, std=std, a=-2 * std, b=2 * std)
            if adaln:
                nn.init.zeros_(block.modulation.weight)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def forward(
        self,
        x: Tensor,
        rope: Rotation | None = None,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        rng: RowRNG | None = None,
        kinds: Sequence[int] | None = None,
        taps: Mapping[int, list[Tensor]] | None = None,
    ) -> Tensor:
        """The whole sequence.

        Args:
            x: float [B, T, D].
            rope: rotation of the T tokens (nn/rope.py).
            mask: bool, broadcastable to [B, H, T, T], True where seen; in place of the triangle of a causal model.
            context: float [B, L, D].
            context_mask: bool [B, L].
            vector: float [B, D], by which blocks are modulated.
            rng: for dropout; None: no dropout.
            kinds: of a model with several, how many tokens of each there are, one kind behind the other; they sum to T.
            taps: number of a block -> list; the outputs of these blocks, not normalised, are appended to their lists.

        Returns:
            float [B, T, D], normalised.
        """
        given, x, context = x, activations(x), None if context is None else activations(context)
        rope = self.typed(rope, x)
        context_mask = None if context_mask is None else context_mask[:, None, None]
        for number, block in enumerate(self.blocks):
            x = block(
                x,
                rope,
                mask,
                self.causal and mask is None,
                context=context,
                context_mask=context_mask,
                rng=rng,
                kinds=kinds,
                vector=vector,
            )
            if taps is not None and number in taps:
                taps[number].append(x.to(given.dtype))
        return self._normalised(x, given)

    def init_cache(
        self,
        batch: int,
        capacity: int,
        prefix: int = 0,
        prefix_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> KVCache:
        """A cache for `batch` rows, `prefix` slots and `capacity` steps, with all that depends on the context and the vector computed."""
        cache = KVCache(self.depth, batch, capacity, prefix, prefix_mask, self.norm.weight.device)
        if context is not None:
            context = activations(context)
            cache.context = [block.cross.project(context) for block in self.blocks]
            cache.context_mask = None if context_mask is None else context_mask[:, None, None]
        if vector is not None:
            cache.modulation = [block.modulate(vector) for block in self.blocks]
        return cache

    def extend(self, x: Tensor, rope: Rotation | None, cache: KVCache, window: Window) -> Tensor:
        """The steps of `window`: x float [B, S, D] with their rotation -> [B, S, D], normalised; their keys go into the cache."""
        given, x = x, activations(x)
        rope = self.typed(rope, x)
        if rope is not None and not torch.is_grad_enabled() and rope[0].shape[-1] < self.head_width:
            rope = widened(rope)
        if isinstance(cache, KVCache):
            if cache.blocks is None:
                cache.blocks = plain_blocks(self.blocks, x, cache.batch) or ()
            for layer, plain in enumerate(cache.blocks):
                x = plain(x, rope, cache, layer, window)
            if cache.blocks:
                return self._normalised(x, given)
        for layer, block in enumerate(self.blocks):
            x = block(
                x,
                rope,
                modulation=None if cache.modulation is None else cache.modulation[layer],
                context=None if cache.context is None else cache.context[layer],
                context_mask=cache.context_mask,
                cache=cache,
                layer=layer,
                window=window,
            )
        return self._normalised(x, given)

    def _normalised(self, x: Tensor, given: Tensor) -> Tensor:
        """The last norm, in the type of what was given, unless autocast chooses it."""
        return self.norm(x) if x.dtype == given.dtype else self.norm(x).to(given.dtype)

    @staticmethod
    def typed(rope: Rotation | None, x: Tensor) -> Rotation | None:
        """In the type that queries will have: another would promote them."""
        if rope is None:
            return None
        device = x.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        return rope[0].to(dtype), rope[1].to(dtype)
