"""The transformer that every token generator uses: causal or bidirectional, LLaMA-like (Touvron et al., arXiv 2302.13971).

Pre-norm blocks of RMSNorm, self-attention (rotary, QK-norm) and SwiGLU (Shazeer, arXiv 2002.05202), without biases; or, as in ViT and
GPT-2, of LayerNorm and GELU with biases. Optionally cross-attention to a context, and adaLN-zero on a vector (Peebles and Xie, DiT, arXiv
2212.09748): shift, scale and gate of both branches from SiLU(vector), zero at the start, so that every block begins as the identity.
Tokens of several kinds in one sequence (FlexTok: patches and registers, arXiv 2502.13967) may each have a modulation of their own.

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
from gentok.nn.feed_forward import FeedForward, feed_forward_width
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import activations
from gentok.nn.norm import make_norm
from gentok.nn.rope import Rotation, widened
from gentok.rng import RowRNG

__all__ = ["Transformer", "TransformerBlock", "dropout", "gated", "initialise", "shifted"]


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
    bits = rng.words(math.ceil(x[0].numel() / 4)).view(torch.int16)[:, : x[0].numel()].view(x.shape)
    return x * (bits >= round(rate * 65536) - 32768).to(x.dtype).mul_(1.0 / (1.0 - rate))


def shifted(x: Tensor, shift: Tensor, scale: Tensor, kinds: Sequence[int] | None) -> Tensor:
    """x (1 + scale) + shift for x [B, T, D], shift and scale [B, S, D]; kinds: how many tokens each of the S kinds has, in turn."""
    if kinds is None:
        return torch.addcmul(x + shift, x, scale)
    parts = zip(x.split(kinds, 1), shift.split(1, 1), scale.split(1, 1))
    return torch.cat([torch.addcmul(part + b, part, a) for part, b, a in parts], 1)


def gated(x: Tensor, gate: Tensor, kinds: Sequence[int] | None) -> Tensor:
    """x gate, as in shifted."""
    return x * gate if kinds is None else torch.cat([part * g for part, g in zip(x.split(kinds, 1), gate.split(1, 1))], 1)


class TransformerBlock(Block):
    """x + attention(norm x), x + cross(norm x), x + mlp(norm x). bias: of the linear layers of the first and the last."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: str, qk_norm: bool | Literal["cosine", "layer"], adaln: int, cross: bool,
        rate: float, bias: bool = False, norm: str = "rms", eps: float = 1e-6, post_norm: bool = False,
    ):
        super().__init__()
        self.rate, self.kinds, self.post_norm = rate, int(adaln), post_norm
        self.norm1 = make_norm(norm, width, not adaln, eps)
        self.attention = SelfAttention(width, heads, qk_norm, bias)
        self.norm_cross = make_norm(norm, width, True, eps) if cross else None
        self.cross = CrossAttention(width, heads, qk_norm) if cross else None
        self.norm2 = make_norm(norm, width, not adaln, eps)
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
        if self.post_norm:
            x = self.norm1(x + dropout(self.attention(x, rope, mask, causal, cache, layer, window), self.rate, rng))
            return self.norm2(x + dropout(self.mlp(x), self.rate, rng))
        h = self.norm1(x)
        if modulation is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(0)
            h = shifted(h, shift1, scale1, kinds)
        h = self.attention(h, rope, mask, causal, cache, layer, window)
        x = x + dropout(h if modulation is None else gated(h, gate1, kinds), self.rate, rng)
        if self.cross is not None:
            x = x + dropout(self.cross(self.norm_cross(x), context, context_mask), self.rate, rng)
        h = self.norm2(x)
        if modulation is not None:
            h = shifted(h, shift2, scale2, kinds)
        h = self.mlp(h)
        return x + dropout(h if modulation is None else gated(h, gate2, kinds), self.rate, rng)


class Transformer(nn.Module):
    """Blocks of attention and feed-forward networks, and a last norm.

    Args:
        width: D.
        depth: blocks.
        heads: of attention.
        hidden: width of the feed-forward part; None: 8/3 D, up to the next multiple of 64, or 4 D for gelu.
        causal: whether a token sees only itself and earlier ones.
        activation: swiglu, geglu, gelu, gelu_tanh or quick_gelu.
        qk_norm: whether queries and keys are RMS-normalised; "cosine", "layer": see nn/attention.py.
        adaln: whether blocks are modulated by a vector [B, D]; above 1: the number of kinds of tokens, each modulated by itself.
        cross: whether blocks attend to a context [B, L, D].
        dropout: rate, of both branches.
        bias: whether the linear layers of both branches have one.
        norm: rms (RMSNorm) or layer (LayerNorm, with a bias).
        eps: of the norms.
        post_norm: whether norms stand behind the sums and before the first block, as in BERT; such blocks have no adaln and no cross.
        skips: whether each block of the first half is read again, by a linear layer, before its counterpart in the second, as in U-ViT
            (Bao et al., arXiv 2209.12152); the depth is odd, and there is no cache.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        causal: bool = True,
        activation: str = "swiglu",
        qk_norm: bool | Literal["cosine", "layer"] = True,
        adaln: bool | int = False,
        cross: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        norm: str = "rms",
        eps: float = 1e-6,
        post_norm: bool = False,
        skips: bool = False,
    ):
        super().__init__()
        if skips and depth % 2 == 0:
            raise ValueError(f"a transformer with skips has a block in the middle: an odd depth, not {depth}")
        if post_norm and (adaln or cross):
            raise ValueError("post_norm needs condition_by=prefix: such blocks have no modulation and no context")
        hidden = hidden or feed_forward_width(width, activation)
        self.width, self.depth, self.heads, self.causal, self.post_norm = width, depth, heads, causal, post_norm
        settings = (width, heads, hidden, activation, qk_norm, adaln, cross, dropout, bias, norm, eps, post_norm)
        self.blocks = nn.ModuleList(TransformerBlock(*settings) for _ in range(depth))
        self.norm = make_norm(norm, width, True, eps)
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth // 2)) if skips else None
        initialise(self)
        std = 0.02 / math.sqrt(2 * depth)
        for block in self.blocks:
            for part in filter(None, (block.attention, block.mlp, block.cross)):
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
        rope, context_mask = self.typed(rope, x), None if context_mask is None else context_mask[:, None, None]
        causal, beside = self.causal and mask is None, {"context": context, "context_mask": context_mask, "vector": vector}
        x = self.norm(x) if self.post_norm else x
        first: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if self.skips is not None and number > self.depth // 2:
                x = self.skips[number - self.depth // 2 - 1](torch.cat((x, first.pop()), -1))
            x = block(x, rope, mask, causal, rng=rng, kinds=kinds, **beside)
            if self.skips is not None and number < self.depth // 2:
                first.append(x)
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
        x = self.norm(x) if self.post_norm else x
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
        if self.post_norm:
            return x.to(given.dtype)
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
