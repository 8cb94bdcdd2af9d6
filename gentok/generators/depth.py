"""A depth transformer: one network along positions, a small one along the levels of each (Lee et al.,
RQ-Transformer, arXiv 2203.01941; Moshi, arXiv 2410.00037, section 3.4.1).

    h_n         = temporal(sum over k of E_k[code_k,n-1], n = 0 .. )          a step per position, not per cell
    p(code_k,n) = head_k(depth(A_0 h_n, A_1 h_n + F_0[code_0,n], ..., A_k h_n + F_k-1[code_k-1,n])_k)

An exact factorisation in the position-major order, as the flattened one is, at N long steps instead of K N; a
sampler sees a Causal generator of one cell per step. Cells that are ABSENT are fed as a filler of their level
and carry no loss.

Cached: the temporal transformer keeps keys and values per position; the levels of the positions in a call are
computed anew, which is cheap and leaves nothing to forget. A tree is computed path by path without the cache;
its committed path is then fed in order.

Deviations: the depth transformer's weights are shared by its levels, as in RQ-Transformer, but for their
inputs' maps A_k and heads (Moshi has a set of weights per level); both transformers are gentok's own (rotary
along positions, QK-norm, SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentok.generators.causal import CausalTransformer
from gentok.nn.cell_positions import cell_names, rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.kv_cache import KVCache
from gentok.nn.linear import Linear, activations
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings, full_precision, initialise_parts, token_nll
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, PositiveInt
from gentok.types import ABSENT, Condition, ConditionSpec, Tokens, TokenSpec

__all__ = ["DepthTransformer"]


@dataclass
class _Cache:
    """What is kept between calls.

    Attributes:
        codes: int64 [B, K, N], as they were fed.
        temporal: keys and values of the temporal transformer.
        condition: B rows.
        hidden: float [B, N, D], states of the temporal transformer.
        tree: int64 [B, S, 1], the last call's ids, where it was a tree.
    """

    codes: Tensor
    temporal: KVCache
    condition: Condition
    hidden: Tensor | None = None
    tree: Tensor | None = None

    @property
    def batch(self) -> int:
        return len(self.codes)


class DepthTransformer(CausalTransformer, id="generator/depth"):
    """A temporal transformer over positions and a depth transformer over the levels of each.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        level_width: D', channels of the depth transformer.
        level_depth: its blocks.
        level_heads: its attention heads.
        token_dropout: share of positions that the temporal transformer is fed in training without their
            codes.
        zero_init_head: whether the first prediction is uniform.
        ends: whether items end by themselves, by an id of their own at level 0; else the sampler is given
            their lengths.
        transformer: of the temporal transformer, as in TransformerSettings.
    """

    TRUNK = "temporal"
    moves_rows = True

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        level_width: PositiveInt = 128,
        level_depth: Count = 2,
        level_heads: PositiveInt = 4,
        token_dropout: Fraction = 0.0,
        zero_init_head: bool = False,
        ends: bool = False,
        **transformer: TransformerOptions,
    ):
        settings = TransformerSettings(**transformer)
        super().__init__(spec, condition_spec, settings, "position_major", token_dropout, ends)
        width, codes = settings.width, sum(spec.vocab_sizes)
        self.levels = Transformer(level_width, level_depth, level_heads, qk_norm=settings.qk_norm, dropout=settings.dropout)
        self.token_table = nn.Embedding(codes + spec.levels + 1, width)  # codes, a filler per level, begin
        self.level_table = nn.Embedding(codes + spec.levels, level_width)
        self.into_levels = nn.Linear(width, spec.levels * level_width)  # A_k
        self.heads = nn.ModuleList(Linear(level_width, size + (ends and k == 0)) for k, size in enumerate(spec.vocab_sizes))
        with torch.device("cpu"):
            names = self._compile(settings.rope)
        self.position_table = nn.Embedding(names, width) if names else None
        initialise_parts(self.token_table, self.level_table, self.into_levels, self.heads, self.position_table)
        if zero_init_head:
            for head in self.heads:
                nn.init.zeros_(head.weight)

    def _compile(self, rope: str) -> int:
        """Makes the constants; returns how many rows the table of positions' names has."""
        spec, n = self.spec, torch.arange(self.spec.positions)
        cos, sin = rotation_tables(spec, rope, self.conditioner.places, self.trunk.head_width, n, n - 1)
        named, names = cell_names(spec, None, n)
        starts = torch.tensor([sum(spec.vocab_sizes[:k]) for k in range(spec.levels)])
        level, position = self.layout.level[:, 0], self.layout.position[:, 0]
        first = torch.cat((torch.tensor([True]), position[1:] != position[:-1]))  # the fed step at which a position begins
        self._tables = Constants(
            cos=cos, sin=sin, named=named, starts=starts[:, None], fillers=(sum(spec.vocab_sizes) + torch.arange(spec.levels))[:, None],
            exists=spec.exists(), level=level, position=position, begins=first.nonzero()[:, 0],
        )  # fmt: skip
        return names

    # ------------------------------------------------------------------------------------------------ network

    def _rows(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, n] -> rows of the tables, fillers where nothing is."""
        tables = self._tables.on(codes.device)
        return torch.where(codes >= 0, codes + tables.starts, tables.fillers)

    def _embed(self, codes: Tensor, position: Tensor) -> Tensor:
        """What the temporal transformer reads at positions int64 [B, n]: codes int64 [B, K, n] of the
        positions before -> [B, n, D]."""
        tables, table = self._tables.on(codes.device), self.token_table
        before = (position - 1).clamp(min=0)
        there = tables.exists.T[before][..., None]  # [B, n, K, 1]: cells that the spec has
        x = (table(self._rows(codes).transpose(1, 2)) * there.to(table.weight.dtype)).sum(2)
        x = torch.where((position > 0)[..., None], x, table.weight[-1])
        if self.position_table is not None:
            x = x + self.position_table(tables.named[position]).sum(-2)
        return x

    def _hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, K, N] -> float [B, N, D], of the temporal transformer, teacher-forced."""
        self.check_shape(codes)
        position = torch.arange(codes.shape[2], device=codes.device).expand(len(codes), -1)
        before = codes.roll(1, 2)
        if rng is not None and self.token_dropout:
            before = torch.where((rng.uniform(codes.shape[2]) < self.token_dropout)[:, None], ABSENT, before)
        return self._attend(self._embed(before, position), condition, rng)

    def _level_states(self, hidden: Tensor, codes: Tensor, rng: RowRNG | None = None) -> Tensor:
        """hidden float [B, n, D], codes int64 [B, K, n] -> float [B, n, K, D'], from which each level is
        predicted given those before it."""
        x = self.into_levels(hidden).unflatten(2, (self.spec.levels, -1))
        given = self.level_table(self._rows(codes)[:, :-1].transpose(1, 2))  # [B, n, K - 1, D']
        x = torch.cat((x[:, :, :1], x[:, :, 1:] + given), 2)
        if rng is not None and self.dropout:
            rng = RowRNG(rng.words(hidden.shape[1]).flatten())  # a stream per position: dropout draws by rows
        return self.levels(x.flatten(0, 1), rng=rng).unflatten(0, hidden.shape[:2])

    def _logits(self, states: Tensor, level: int) -> Tensor:
        """states float [..., D'] of cells of one level -> [..., ids]."""
        return self._pad(self.heads[level](activations(states)), level)

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced logits, without a cache.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows; None: null.

        Returns:
            float [B, S, 1, ids]: of every layout step given the steps before, as `logits` gives them.
        """
        states = self._level_states(self._hidden(tokens.codes, condition or Condition(), None), tokens.codes)
        tables = self._tables.on(states.device)
        every = torch.stack([self._logits(states[:, :, k], k) for k in range(self.spec.levels)], 2)
        return every[:, tables.position, tables.level][:, :, None]

    def _level_nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        states, out = self._level_states(self._hidden(codes, condition, rng), codes, rng), []
        for k, head in enumerate(self.heads):
            target, there = self._targets(codes, k)
            nll = token_nll(full_precision(head(states[:, :, k])), target, there)
            out.append((nll, nll, there))
        return out

    def _row_nats(self, nats: list[Tensor]) -> Tensor:
        return torch.stack(nats).sum((0, 2))

    # ------------------------------------------------------------------------------------------------- Causal

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> _Cache:
        """As Causal.init_cache; the cache holds all positions, whatever `capacity`."""
        codes = torch.full((batch, self.spec.levels, self.spec.positions), ABSENT, dtype=torch.int64, device=self.token_table.weight.device)
        return _Cache(codes, self._start_cache(condition, batch, self.spec.positions), condition)

    def logits(self, ids: Tensor, cache: _Cache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits; what is predicted at fed steps beyond the layout's end is unspecified."""
        cache.tree, at = None if parents is None else ids, at.to(ids.device)
        if parents is not None:
            return self._tree(ids, cache, at, parents)
        tables, last = self._tables.on(ids.device), self.layout.steps - 1
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        fed = at[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self._write(cache.codes, ids[..., 0], fed)
        step = fed.clamp(max=last)
        self._advance(cache, at, step)
        near = tables.position[step[:, 0]]  # the levels of these positions, and of no others
        width = int((tables.position[step[:, -1]] - near).max()) + 1
        place = (near[:, None] + torch.arange(width, device=ids.device)).clamp(max=self.spec.positions - 1)
        codes = cache.codes.transpose(1, 2)[rows, place].transpose(1, 2)
        states = self._level_states(cache.hidden[rows, place], codes)
        level = tables.level[step]
        states = states[rows, tables.position[step] - near[:, None], level]  # [B, S, D']
        out = None
        for k in level.unique().tolist():
            here = level == k
            part = self._logits(states[here], k)
            out = part.new_empty((*level.shape, part.shape[-1])) if out is None else out
            out[here] = part
        return out[:, :, None]

    def _write(self, codes: Tensor, ids: Tensor, fed: Tensor) -> None:
        """ids int64 [B, S] of fed steps int64 [B, S], each the cell of the layout step before, into codes [B,
        K, N]; begin is no cell."""
        tables = self._tables.on(ids.device)
        row, s = ((fed > 0) & (fed <= self.layout.steps)).nonzero(as_tuple=True)
        step = fed[row, s] - 1
        codes[row, tables.level[step], tables.position[step]] = ids[row, s]

    def _advance(self, cache: _Cache, at: Tensor, step: Tensor) -> None:
        """The temporal transformer over the positions that begin at these steps int64 [B, S], of which at[b]
        is each row's first."""
        tables = self._tables.on(at.device)
        first = torch.searchsorted(tables.begins, at.contiguous())  # the first position that begins at or behind `at`
        count = int((torch.searchsorted(tables.begins, step[:, -1].contiguous(), right=True) - first).max())
        if count < 1:
            return
        first = first.clamp(max=self.spec.positions - count)  # near the end some positions are computed once more
        rows, place = torch.arange(len(at), device=at.device)[:, None], first[:, None] + torch.arange(count, device=at.device)
        before = cache.codes.transpose(1, 2)[rows, (place - 1).clamp(min=0)].transpose(1, 2)
        x = self._embed(before, place)
        out = self.temporal.extend(x, self._rotation(at.device, place), cache.temporal, cache.temporal.window(first, count))
        if cache.hidden is None:
            cache.hidden = out.new_zeros(len(at), self.spec.positions, out.shape[2])
        cache.hidden[rows, place] = out

    def _tree(self, ids: Tensor, cache: _Cache, at: Tensor, parents: Tensor) -> Tensor:
        """Every step of a tree by its own path from the beginning."""
        batch, size = parents.shape
        codes, depth = [], torch.zeros_like(parents)
        for s in range(size):
            parent = parents[:, s]
            before = torch.stack([*codes, cache.codes])[torch.where(parent < 0, len(codes), parent), torch.arange(batch, device=ids.device)]
            above = depth.gather(1, parent.clamp(min=0)[:, None])[:, 0]
            depth[:, s] = torch.where(parent < 0, 0, above + 1)
            own = before.clone()
            self._write(own, ids[:, s], (at + depth[:, s])[:, None])
            codes.append(own)
        flat = torch.stack(codes, 1).flatten(0, 1)
        condition = cache.condition.rows(torch.arange(batch, device=ids.device).repeat_interleave(size))
        step = (at[:, None] + depth).clamp(max=self.layout.steps - 1).flatten()
        out = self(Tokens(flat, self.spec), condition)
        return out[torch.arange(len(out), device=ids.device), step].unflatten(0, (batch, size))

    def commit(self, cache: _Cache, at: Tensor, path: Tensor | None = None) -> None:
        """As Causal.commit."""
        if path is None or cache.tree is None:
            return
        # What is fed behind a row's end is forgotten.
        kept = torch.where(path >= 0, cache.tree[..., 0].gather(1, path.clamp(min=0)), ABSENT)
        room = int((self.layout.steps - at).max())
        if kept[:, :room].numel():
            self.logits(kept[:, :room, None], cache, at)

    def take(self, cache: _Cache, rows: Tensor) -> _Cache:
        """As Causal.take."""
        hidden = None if cache.hidden is None else cache.hidden[rows]
        return _Cache(cache.codes[rows], cache.temporal.take(rows), cache.condition.rows(rows), hidden)

    def put(self, cache: _Cache, rows: Tensor, other: _Cache) -> None:
        """As Causal.put."""
        cache.temporal.put(rows, other.temporal)
        cache.codes[rows], cache.hidden[rows], cache.tree = other.codes, other.hidden, None
        order = torch.arange(cache.batch, device=rows.device).scatter(0, rows, cache.batch + torch.arange(len(rows), device=rows.device))
        cache.condition = Condition.concat([cache.condition, other.condition]).rows(order)
