"""The blocks of a network with a token density (nn/density.py), and how tokens become few and all again.

    pool      x + out(value(mean of norm x)): uniform attention. The mean is taken first, so it costs one token and no scores.
    gather    few = pooled x;  few + attention(few, to x);  mlp
    recover   m = C nearest(few) + F x;  m + attention(m, to few);  mlp

C begins as zero and F as the identity; both branches of `recover` begin as zero, by their gates where modulation begins as zero
(adaLN-zero) and by their output matrices elsewhere. So `recover` begins as the identity, and what lies between it and `gather` without
effect. Gates and output matrices are never zero together: the gradients of both would be zero for ever.

Tokens come in groups, one behind the other, and a group may see some groups only (nn/entity_transformer.py). Pooling is inside of a group;
a mean, and attention from few to all and back, reach exactly the groups that attention between all tokens would. Groups that lie on no
grid (registers) stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.attention import attend
from gentok.nn.density import Density, Shape
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear
from gentok.nn.norm import rms_norm
from gentok.nn.rope import Rotation, rotate
from gentok.nn.transformer import TransformerBlock, dropout, gated, shifted
from gentok.rng import RowRNG

__all__ = ["Reach", "Side", "begin", "blocks_of", "nearest", "pooled", "sparse_group"]


class Reach(NamedTuple):
    """Groups of tokens, for `Pooling`. sizes: tokens of each of M; sees: bool [M, M], which of them each one sees."""

    sizes: Sequence[int]
    sees: Tensor


class Pooling(nn.Module):
    """Uniform attention, in the place of SelfAttention: every token is given the mean of the values that it sees."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.value, self.out = Linear(width, width, bias), Linear(width, width, bias)

    def forward(
        self, x: Tensor, rope: Rotation | None = None, mask: Reach | None = None, causal: bool = False, cache: KVCache | None = None,
        layer: int = 0, window: Window | None = None,
    ) -> Tensor:  # fmt: skip
        """x float [B, T, D] -> the same shape. mask: groups that see some alone; None: all see all. cache: x of the groups before them."""
        if mask is None:
            return self.out(self.value(x.mean(1, keepdim=True))).expand_as(x)
        count = torch.tensor(mask.sizes, device=x.device)
        sees = mask.sees.to(x)
        total = sees @ torch.stack([part.sum(1) for part in x.split(list(mask.sizes), 1)], 1)
        seen = (sees @ count.to(x))[:, None]
        if cache is not None and window is not None:
            kept, _ = cache.write(layer, x[:, None], x[:, None], window)
            total = total + kept[:, 0, : window.start].sum(1, keepdim=True).to(x)
            seen = seen + (window.start or 0)
        return self.out(self.value(total / seen)).repeat_interleave(count, 1)


class Across(nn.Module):
    """Attention of some tokens to others, both rotated, with a cache of the others' keys and values; else as SelfAttention."""

    def __init__(self, width: int, heads: int, qk_norm: bool, bias: bool):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key_value, self.out = Linear(width, width, bias), Linear(width, 2 * width, bias), Linear(width, width, bias)
        self.qk_scale = nn.Parameter(torch.ones(2 * self.head_width)) if qk_norm else None

    def forward(
        self, x: Tensor, context: Tensor, rope: tuple[Rotation, Rotation] | None, mask: Tensor | None, cache: KVCache | None, layer: int,
        window: Window | None,
    ) -> Tensor:  # fmt: skip
        """x float [B, S, D], context float [B, L, D], rope of both, mask bool [1, 1, S, L] -> [B, S, D]."""
        (batch, steps, width), length = x.shape, context.shape[1]
        q = self.query(x).view(batch, steps, self.heads, self.head_width)
        k, v = self.key_value(context).view(batch, length, 2, self.heads, self.head_width).unbind(2)
        if self.qk_scale is not None:
            q, k = rms_norm(q, self.qk_scale[: self.head_width]), rms_norm(k, self.qk_scale[self.head_width :])
        if rope is not None:
            (cos, sin), (key_cos, key_sin) = rope
            q = rotate(q[:, :, None], (cos[:, :1], sin[:, :1]))[:, :, 0]
            k = rotate(k[:, :, None], (key_cos[:, 1:], key_sin[:, 1:]))[:, :, 0]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if cache is not None and window is not None:
            k, v = cache.write(layer, k, v, window)
            mask = window.mask
        return self.out(attend(q, k, v, mask).transpose(1, 2).reshape(batch, steps, width))


class PoolBlock(TransformerBlock):
    """A block whose attention is `Pooling`; `mask` is a Reach."""

    def __init__(self, width: int, heads: int, *settings: Any):
        super().__init__(width, heads, *settings)
        self.attention = Pooling(width, bias=self.mlp.out.bias is not None)


class AcrossBlock(TransformerBlock):
    """A block of some tokens that attend to others: `gather`. The others are normalised and modulated as the tokens are."""

    def __init__(self, width: int, heads: int, *settings: Any):
        super().__init__(width, heads, *settings)
        self.attention = Across(width, heads, self.attention.qk_scale is not None, bias=self.mlp.out.bias is not None)

    def forward(self, x: Tensor, context: Tensor, **given: Any) -> Tensor:  # type: ignore[override]
        """x float [B, S, D] and context float [B, L, D] -> [B, S, D]; given: as `_across` takes it."""
        return self._across(x, context, **given)

    def _across(
        self, x: Tensor, context: Tensor, rope: tuple[Rotation, Rotation] | None = None, mask: Tensor | None = None,
        rng: RowRNG | None = None, cache: KVCache | None = None, layer: int = 0, window: Window | None = None,
        kinds: Sequence[int] | None = None, context_kinds: Sequence[int] | None = None, vector: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """kinds and context_kinds: how many tokens of each group x and the context have; the rest as in TransformerBlock."""
        h, c, modulation = self.norm1(x), self.norm1(context), None if vector is None else self.modulate(vector)
        if modulation is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(0)
            h, c = shifted(h, shift1, scale1, kinds), shifted(c, shift1, scale1, context_kinds)
        h = self.attention(h, c, rope, mask, cache, layer, window)
        x = x + dropout(h if modulation is None else gated(h, gate1, kinds), self.rate, rng)
        h = self.norm2(x)
        h = self.mlp(h if modulation is None else shifted(h, shift2, scale2, kinds))
        return x + dropout(h if modulation is None else gated(h, gate2, kinds), self.rate, rng)


class RecoverBlock(AcrossBlock):
    """All tokens again: what the few say is added to what all were, then all attend to the few."""

    def __init__(self, width: int, heads: int, *settings: Any):
        super().__init__(width, heads, *settings)
        self.coarse, self.fine = Linear(width, width), Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, up: Tensor, **given: Any) -> Tensor:  # type: ignore[override]
        """As AcrossBlock; up float [B, n, D]: for each of the first n tokens the nearest of the few. Others are not merged."""
        merged = self.coarse(up) + self.fine(x[:, : up.shape[1]])
        return self._across(torch.cat((merged, x[:, up.shape[1] :]), 1), context, **given)


_KINDS = {"pool": PoolBlock, "gather": AcrossBlock, "sparse": TransformerBlock, "recover": RecoverBlock, "dense": TransformerBlock}


def blocks_of(density: Density, depth: int, *settings: Any) -> nn.ModuleList:
    """The blocks of a network of this depth; settings: of each TransformerBlock, which has no cross-attention."""
    return nn.ModuleList(_KINDS[kind](*settings) for kind in density.plan(depth))


def begin(blocks: nn.ModuleList, zero_gates: bool) -> None:
    """Makes every `recover` block the identity. zero_gates: whether both branches' gates are zero; else their output matrices become so."""
    for block in blocks:
        if isinstance(block, RecoverBlock):
            outputs = () if zero_gates else (block.attention.out, block.mlp.out)
            for layer in (block.coarse, block.fine, *outputs):
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
            nn.init.ones_(block.fine.weight.diagonal())


def pooled(x: Tensor, shapes: Sequence[Shape], small: Sequence[Shape]) -> Tensor:
    """Every group's mean over the cells of a smaller grid (adaptive average pooling).

    Args:
        x: float [B, T, D], groups of tokens, row by row on grids of these shapes; tokens behind them stay.
        shapes: of the G groups.
        small: their smaller grids.

    Returns:
        float [B, S, D], group behind group.
    """
    sizes = [h * w for h, w in shapes]
    *groups, rest = x.split([*sizes, x.shape[1] - sum(sizes)], 1)
    if len(set(shapes)) == 1 == len(set(small)):  # all at once
        groups = [x[:, : sum(sizes)].unflatten(1, (len(sizes), sizes[0])).flatten(0, 1)]
        shapes, small = shapes[:1], small[:1]
    parts = [
        F.adaptive_avg_pool2d(group.transpose(1, 2).unflatten(2, shape), to).flatten(2).transpose(1, 2)
        for group, shape, to in zip(groups, shapes, small)
    ]
    parts = [part.reshape(len(x), -1, x.shape[2]) for part in parts]
    return torch.cat((*parts, rest), 1)


def nearest(shapes: Sequence[Shape], small: Sequence[Shape], device: torch.device) -> Tensor:
    """int64 [T]: for every token of the groups, which of the few is the nearest (nearest upsampling)."""
    parts, start = [], 0
    for (h, w), (rows, columns) in zip(shapes, small):
        y, x = torch.arange(h, device=device) * rows // h, torch.arange(w, device=device) * columns // w
        parts.append(start + (y[:, None] * columns + x).flatten())
        start += rows * columns
    return torch.cat(parts)


@dataclass(frozen=True)
class Side:
    """All tokens of a call, or its few. sizes: of each group; rope: of them; start: how many of its kind lie in the cache before them."""

    sizes: tuple[int, ...]
    rope: Rotation | None = None
    start: int = 0

    @property
    def kinds(self) -> Sequence[int] | None:
        """As TransformerBlock takes them: None where every token is a group."""
        return None if max(self.sizes) == 1 == min(self.sizes) else self.sizes

    def view(self, of: Side, sees: Tensor | None) -> Tensor | None:
        """bool [1, 1, S, L], which tokens of another side these see; sees: bool [M, M] of the groups; None: all."""
        if sees is None:
            return None
        rows, columns = (torch.tensor(side.sizes, device=sees.device) for side in (self, of))
        mask = sees.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return F.pad(mask, (of.start, 0), value=True)[None, None]


def sparse_group(
    blocks: Sequence[nn.Module], x: Tensor, shapes: Sequence[Shape], small: Sequence[Shape], full: Side, few: Side, *,
    sees: Tensor | None = None, vector: Tensor | None = None, rng: RowRNG | None = None, cache: KVCache | None = None, layer: int = 0,
) -> Tensor:  # fmt: skip
    """One group of a plan, from `gather` to `recover`.

    Args:
        blocks: those of the plan.
        x: float [B, T, D], all tokens, group behind group; those on no grid come last.
        shapes: the groups' grids.
        small: their smaller grids.
        full: x's groups; a group that takes no part has size 0 here.
        few: the groups of the few tokens.
        sees: bool [M, M], which groups each one sees; None: all.
        vector: of the modulation.
        rng: for dropout.
        cache: keys and values of the groups before these.
        layer: number of the first block, in the cache.

    Returns:
        float [B, T, D].
    """
    gather, *among, recover = blocks
    taking, behind = x.split([sum(full.sizes), x.shape[1] - sum(full.sizes)], 1)

    def given(side: Side, of: Side, number: int) -> dict[str, Any]:
        mask, window = side.view(of, sees), None
        if cache is not None:
            window = Window(of.start + sum(of.sizes), of.start, None, None, mask, causal=False)
        return {"mask": mask, "window": window, "cache": cache, "layer": layer + number, "rng": rng, "vector": vector}

    def ropes(side: Side, of: Side) -> tuple[Rotation, Rotation] | None:
        return None if side.rope is None or of.rope is None else (side.rope, of.rope)

    context_kinds = full.kinds if behind.shape[1] == 0 else [*full.sizes[: len(shapes)], behind.shape[1]]
    sparse = gather(
        pooled(taking, shapes, small), x, rope=ropes(few, full), kinds=few.kinds, context_kinds=context_kinds, **given(few, full, 0)
    )
    for number, block in enumerate(among, 1):
        sparse = block(sparse, few.rope, kinds=few.kinds, **given(few, few, number))
    up = sparse[:, nearest(shapes, small, x.device)]
    taking = torch.cat((taking[:, : up.shape[1]], sparse[:, sum(h * w for h, w in small) :]), 1)
    taking = recover(
        taking, sparse, up, rope=ropes(full, few), kinds=full.kinds, context_kinds=few.kinds, **given(full, few, len(blocks) - 1)
    )
    return torch.cat((taking, behind), 1)
