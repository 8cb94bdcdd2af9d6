"""The network of xAR (Ren et al., arXiv 2502.20388): a transformer over groups of vectors, each group at a time of its own.

A vector sees its own group whole, and earlier groups; the mask is causal between groups and not inside one. Blocks are modulated (adaLN,
DiT, arXiv 2212.09748) by the sum of an embedded condition and the group's embedded time. As in the release: RMSNorm without weights,
GEGLU (Shazeer, arXiv 2002.05202; hidden width 8/3 of the width), biases of all linear layers, queries and keys that are not normalised,
axial rotation, learned positions that are added twice, to the input of the first and of the second half of the blocks, and matrices of
Xavier's variance, those of the modulation too, so that blocks do not begin as the identity.

With a token density (nn/density.py) pooling and few tokens are inside of a group, and all attention between few and all has the mask of the
groups, so what a group depends on stays as it is; the second half then begins at its first block that is given all tokens.

Deviations: the output layer begins at zero. Times are continuous, the embedding being that of 1000 t, where the release has labels
floor(1000 t): solvers of higher order need a velocity that is smooth in t, and the label 0 of clean groups is hardly ever trained. A norm
stands before the output layer alone, and is modulated; the release has norms behind the positions of the first half, between the halves
(and a linear layer with it) and before the output layer, with weights and without modulation. `release` takes times and norms as there.
Dropout is of both branches' outputs (nn/transformer.py), not of attention's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.constants import Constants
from gentok.nn.density import Density, Shape
from gentok.nn.density_blocks import Reach, Side, begin, blocks_of, pooled, sparse_group
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import activations
from gentok.nn.norm import RMSNorm
from gentok.nn.registers import TimeEmbedding, xavier
from gentok.nn.rope import Rotation, rotation
from gentok.nn.transformer import Transformer, TransformerBlock, initialise, shifted
from gentok.rng import RowRNG

__all__ = ["EntityTransformer"]


class EntityTransformer(nn.Module):
    """float [B, S, C], the vectors of some groups, with their times -> float [B, S, C].

    Args:
        channels: C.
        sizes: vectors of each group; together T.
        place: float [T, 2], where the vectors stand, for the rotation.
        width: D.
        depth: blocks, of both halves together.
        heads: of attention.
        hidden: width of the feed-forward part; None: 8/3 D.
        dropout: rate, of both branches.
        density: of the vectors inside of groups, one rate for all times; None: all blocks see all of them.
        shapes: (rows, columns) of each group; with a density.
        release: whether times are labels and norms stand as in the release.

    Raises:
        ValueError: the density does not fit the depth or the shapes.
    """

    def __init__(
        self, channels: int, sizes: Sequence[int], place: Tensor, width: int, depth: int, heads: int, hidden: int | None, dropout: float,
        density: Density | None = None, shapes: Sequence[Shape] = (), release: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.sizes = tuple(sizes)
        hidden = 8 * width // 3 if hidden is None else hidden
        self.stem = nn.Linear(channels, width)
        self.time = TimeEmbedding(width, period=10_000.0)
        self.places = nn.ModuleList(nn.Embedding(sum(sizes), width) for _ in range(2))
        block = (width, heads, hidden, "geglu", False, 1, False, dropout, True)
        self._plan = ("dense",) * depth if density is None else density.plan(depth)
        self._second = next(n for n in range(depth // 2, depth) if self._plan[n] in ("pool", "gather", "dense"))
        plain = density is None
        self.blocks = nn.ModuleList(TransformerBlock(*block) for _ in range(depth)) if plain else blocks_of(density, depth, *block)
        self.norm_stem = RMSNorm(width) if release else None
        self.norm_middle, self.middle = (RMSNorm(width), nn.Linear(width, width)) if release else (None, None)
        self.norm = RMSNorm(width, affine=release)
        self.modulation = None if release else nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, channels)
        xavier(self)
        initialise(self.places)
        nn.init.zeros_(self.head.weight)
        begin(self.blocks, zero_gates=False)
        self._shapes, self._small = tuple(shapes), ()
        with torch.device("cpu"):
            cos, sin = rotation(place, head_width=width // heads)
            self._tables = Constants(cos=cos, sin=sin)
            self._ends = (0, *accumulate(self.sizes))
            if density is not None:
                density.check(shapes)
                self._small = tuple(density.small(shape) for shape in shapes)
                few = pooled(place[None], shapes, self._small)[0]
                self._few_tables = Constants(**dict(zip(("cos", "sin"), rotation(few, head_width=width // heads))))
                self._few_ends = (0, *accumulate(h * w for h, w in self._small))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        vector: Tensor | None,
        groups: Sequence[int],
        sees: Tensor | None = None,
        *,
        rng: RowRNG | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Reads some groups.

        Args:
            x: float [B, S, C], their vectors, group behind group.
            t: float [B, M], their times.
            vector: float [B, D], the embedded condition; None: none.
            groups: M numbers of groups.
            sees: bool [M, M], which of them each one sees; None: itself and those before it.
            rng: for dropout; None: none.
            cache: keys and values of the groups before them, of all; it is given those of these groups, which are consecutive, and forgets
                what it had of them and of later ones.

        Returns:
            float [B, S, C].
        """
        sizes = [self.sizes[g] for g in groups]
        where = self._where(groups, x.device)
        if self.modulation is None:
            t = (1000 * t.float()).floor().double() / 1000
        tables, time = self._tables.on(x.device), self.time(t.flatten()).unflatten(0, t.shape)
        vector = time if vector is None else time + vector[:, None].to(time.dtype)
        kinds = None if max(sizes) == 1 else sizes
        h = activations(self.stem(x.to(self.stem.weight.dtype)))
        rope = Transformer.typed((tables.cos[where], tables.sin[where]), h)
        mask, window = self._mask(sizes, sees, x.device), None
        if cache is not None:
            start, length = self._ends[groups[0]], self._ends[groups[-1] + 1]
            window = Window(length, start, None, None, None if mask is None else F.pad(mask, (start, 0), value=True), causal=False)
        given: dict[str, Any] = {"rng": rng, "cache": cache, "vector": vector}
        layer = 0
        while layer < len(self.blocks):
            if layer == 0:
                h = h + self.places[0](where).to(h.dtype)
                h = h if self.norm_stem is None else self.norm_stem(h)
            if layer == self._second:
                if self.middle is not None:
                    h = activations(self.middle(self.norm_middle(h).to(self.middle.weight.dtype)))
                h = h + self.places[1](where).to(h.dtype)
            if self._plan[layer] == "gather":
                last = self._plan.index("recover", layer)
                h = self._among_few(h, list(self.blocks[layer : last + 1]), groups, rope, sees, layer=layer, **given)
                layer = last
            else:
                seen = mask if self._plan[layer] == "dense" else self._reach(sizes, sees, h.device)
                h = self.blocks[layer](h, rope, seen, layer=layer, window=window, kinds=kinds, **given)
            layer += 1
        h = self.norm(h)
        if self.modulation is not None:
            h = shifted(h, *self.modulation(F.silu(vector)).chunk(2, -1), kinds)
        return self.head(h.to(self.head.weight.dtype))

    def _where(self, groups: Sequence[int], device: torch.device) -> Tensor:
        """int64 [S]: the places of the vectors of some groups among all T."""
        return torch.cat([torch.arange(self._ends[g], self._ends[g + 1], device=device) for g in groups])

    def _mask(self, sizes: Sequence[int], sees: Tensor | None, device: torch.device) -> Tensor | None:
        """bool [1, 1, S, S]; None where everything is seen."""
        if len(sizes) == 1:
            return None
        with torch.device("cpu"):
            sees = _before(len(sizes)) if sees is None else sees
            count = torch.tensor(sizes)
            return sees.repeat_interleave(count, 0).repeat_interleave(count, 1)[None, None].to(device)

    def _reach(self, sizes: Sequence[int], sees: Tensor | None, device: torch.device) -> Reach:
        """What a block that pools takes in place of a mask."""
        return Reach(sizes, (_before(len(sizes)) if sees is None else sees).to(device))

    def _among_few(
        self, h: Tensor, blocks: list[nn.Module], groups: Sequence[int], rope: Rotation | None, sees: Tensor | None, **given: Any
    ) -> Tensor:
        """The blocks of a density that see few vectors of each group."""
        where = torch.cat([torch.arange(self._few_ends[g], self._few_ends[g + 1], device=h.device) for g in groups])
        tables, cached = self._few_tables.on(h.device), given["cache"] is not None
        few_rope = Transformer.typed((tables.cos[where], tables.sin[where]), h)
        shapes, small = [self._shapes[g] for g in groups], [self._small[g] for g in groups]
        full = Side(tuple(a * b for a, b in shapes), rope, self._ends[groups[0]] if cached else 0)
        few = Side(tuple(a * b for a, b in small), few_rope, self._few_ends[groups[0]] if cached else 0)
        if len(groups) == 1:
            sees = None
        elif sees is None:
            sees = _before(len(groups))
        return sparse_group(blocks, h, shapes, small, full, few, sees=None if sees is None else sees.to(h.device), **given)


def _before(groups: int) -> Tensor:
    """bool [M, M]: each group sees itself and those before it."""
    return torch.ones(groups, groups, dtype=torch.bool, device="cpu").tril()
