"""A depth transformer: one network along positions, a small one along the levels of each (Lee et al., RQ-Transformer, arXiv 2203.01941;
Moshi, arXiv 2410.00037, section 3.4.1).

    h_n           = temporal(sum over k of E_k[code_k,n-1], n = 0 .. )                  one step per position, not per cell
    p(code_k,n)   = head_k(depth(A_0 h_n, A_1 h_n + F_0[code_0,n], ..., A_k h_n + F_k-1[code_k-1,n])_k)

An exact factorisation in the position-major order, as the flattened one is, at N long steps instead of K N; for a sampler it is a Causal
generator of one cell per step. Cells that are ABSENT are fed as a filler of their level and carry no loss.

Cached: the temporal transformer keeps keys and values per position; the levels of the positions at hand are computed anew, which is
cheap and leaves nothing to forget. A tree is computed path by path without the cache, and what of it is committed is then fed in order.

Deviations: the depth transformer's weights are shared by its levels, as in RQ-Transformer, but for their inputs' maps A_k and heads (Moshi
has a set of weights per level); both transformers are gentok's own (rotary along positions, QK-norm, SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import Causal
from gentok.interfaces import Generator
from gentok.layouts import Layout
from gentok.nn.cell_positions import axes_of, cell_coordinates, cell_names, prefix_coordinates
from gentok.nn.conditioning import Conditioner
from gentok.nn.constants import Constants
from gentok.nn.kv_cache import KVCache
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer, dropout, initialise
from gentok.rng import RowRNG
from gentok.types import ABSENT, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["DepthTransformer"]


@dataclass
class _Cache:
    """codes int64 [B, K, N] as they were fed; the temporal transformer's keys and values, and hidden float [B, N, D] of it; the condition,
    and the last call's ids, where it was a tree."""

    codes: Tensor
    temporal: KVCache
    condition: Condition
    hidden: Tensor | None = None
    tree: Tensor | None = None


class DepthTransformer(Generator, Causal, id="generator/depth"):
    """spec, condition_spec: what is modelled, given when the model is built.

    width D, depth, heads, hidden: the temporal transformer. level_width, level_depth, level_heads: the depth transformer.
    condition_by: prefix, cross or adaln; condition_dropout: share of training rows whose condition becomes null, for guidance.
    rope: auto (axial on a raster), line, axial. dropout: of the temporal embeddings and of branches; token_dropout: share of positions that
    the temporal transformer is fed in training without their codes. zero_init_head: the first prediction is uniform. ends: items end by
    themselves, by an id of their own at level 0; else lengths are given to the sampler.
    """

    exact_slots = True

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        hidden: int | None = None,
        level_width: int = 128,
        level_depth: int = 2,
        level_heads: int = 4,
        condition_by: str = "prefix",
        condition_dropout: float = 0.1,
        rope: str = "auto",
        qk_norm: bool = True,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        zero_init_head: bool = False,
        ends: bool = False,
    ):
        super().__init__()
        self.spec, self.condition_spec, self.ends = spec, condition_spec or ConditionSpec(), ends
        self.condition_dropout, self.dropout, self.token_dropout = condition_dropout, dropout, token_dropout
        with torch.device("cpu"):
            self.layout = Layout.of("position_major", spec)
            self.begin = torch.full((1,), spec.vocab, dtype=torch.int64)
        by = condition_by if self.condition_spec.parts else "prefix"
        self.conditioner = Conditioner(self.condition_spec, width, condition_by)
        self.temporal = Transformer(
            width, depth, heads, hidden, causal=True, qk_norm=qk_norm, adaln=by == "adaln", cross=by == "cross", dropout=dropout
        )
        self.levels = Transformer(level_width, level_depth, level_heads, causal=True, qk_norm=qk_norm, dropout=dropout)
        codes = sum(spec.vocab_sizes)
        self.token_table = nn.Embedding(codes + spec.levels + 1, width)  # codes, a filler per level, begin
        self.level_table = nn.Embedding(codes + spec.levels, level_width)
        self.into_levels = nn.Linear(width, spec.levels * level_width)  # A_k
        self.heads = nn.ModuleList(nn.Linear(level_width, size + (ends and k == 0), bias=False) for k, size in enumerate(spec.vocab_sizes))
        with torch.device("cpu"):
            names = self._compile(axes_of(spec, rope))
        self.position_table = nn.Embedding(names, width) if names else None
        for part in (self.token_table, self.level_table, self.into_levels, self.heads, self.position_table):
            if part is not None:
                initialise(part)
        if zero_init_head:
            for head in self.heads:
                nn.init.zeros_(head.weight)

    def _compile(self, axes: int) -> int:
        """Constants; returns the rows of the table of positions' names."""
        spec, places, n = self.spec, self.conditioner.places, torch.arange(self.spec.positions)
        target, held = cell_coordinates(spec, n, axes, places), cell_coordinates(spec, n - 1, axes, places)
        before = prefix_coordinates(torch.arange(places), axes, places)
        cos, sin = rotation(torch.cat((before, target)), torch.cat((before, held)), head_width=self.temporal.head_width)
        named, names = cell_names(spec, None, n)
        starts = torch.tensor([sum(spec.vocab_sizes[:k]) for k in range(spec.levels)])
        exists, level, position = spec.exists(), self.layout.level[:, 0], self.layout.position[:, 0]
        first = torch.cat((torch.tensor([True]), position[1:] != position[:-1]))  # the fed step at which a position begins
        self._tables = Constants(
            cos=cos, sin=sin, named=named, starts=starts[:, None], fillers=(sum(spec.vocab_sizes) + torch.arange(spec.levels))[:, None],
            exists=exists, level=level, position=position, begins=first.nonzero()[:, 0],
        )  # fmt: skip
        return names

    # ------------------------------------------------------------------------------------------------------------ network

    def _rows(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, n] -> rows of the tables, fillers where nothing is."""
        tables = self._tables.on(codes.device)
        return torch.where(codes >= 0, codes + tables.starts, tables.fillers)

    def _embed(self, codes: Tensor, position: Tensor) -> Tensor:
        """What the temporal transformer reads at positions int64 [B, n]: codes int64 [B, K, n] of the positions before -> [B, n, D]."""
        tables, table = self._tables.on(codes.device), self.token_table
        before = (position - 1).clamp(min=0)
        there = tables.exists.T[before][..., None]  # [B, n, K, 1]: cells that the spec has
        x = (table(self._rows(codes).transpose(1, 2)) * there.to(table.weight.dtype)).sum(2)
        x = torch.where((position > 0)[..., None], x, table.weight[-1])
        if self.position_table is not None:
            x = x + self.position_table(tables.named[position]).sum(-2)
        return x

    def _levels(self, hidden: Tensor, codes: Tensor, rng: RowRNG | None = None) -> Tensor:
        """hidden float [B, n, D], codes int64 [B, K, n] -> float [B, n, K, D']: the state from which each level is predicted, given those
        before it."""
        x = self.into_levels(hidden).unflatten(2, (self.spec.levels, -1))
        given = self.level_table(self._rows(codes)[:, :-1].transpose(1, 2))  # [B, n, K - 1, D']
        x = torch.cat((x[:, :, :1], x[:, :, 1:] + given), 2)
        if rng is None or not self.dropout:
            return self.levels(x.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        flat = x.flatten(0, 1)
        each = RowRNG(rng.words(hidden.shape[1]).flatten())  # a stream per position: dropout draws by rows
        return self.levels(flat, rng=each).unflatten(0, hidden.shape[:2])

    def _hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, K, N] -> float [B, N, D], teacher-forced. noise: for dropout; None for none."""
        if codes.shape[1:] != (self.spec.levels, self.spec.positions):
            raise ValueError(
                f"these tokens have {codes.shape[1]} levels x {codes.shape[2]} positions; "
                f"this generator models {self.spec.levels} x {self.spec.positions}"
            )
        batch, tables, places = len(codes), self._tables.on(codes.device), self.conditioner.places
        position = torch.arange(codes.shape[2], device=codes.device).expand(batch, -1)
        before = codes.roll(1, 2)
        if rng is not None and self.token_dropout:
            before = torch.where((rng.uniform(codes.shape[2]) < self.token_dropout)[:, None], ABSENT, before)
        x = self._embed(before, position)
        given = self.conditioner(condition, batch)
        if given.tokens is None or self.conditioner.by != "prefix":
            x, turn = dropout(x, self.dropout, rng), (tables.cos[places:], tables.sin[places:])
            return self.temporal(x, turn, context=given.tokens, context_mask=given.mask, vector=given.vector, rng=rng)
        x = torch.cat((given.tokens.to(x.dtype), x), 1)
        turn = tuple(torch.cat((table[given.place], table[places:])) for table in (tables.cos, tables.sin))
        mask = None
        if given.mask is not None:
            seen = torch.cat((given.mask, given.mask.new_ones(batch, codes.shape[2])), 1)
            mask = (torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril() & seen[:, None])[:, None]
        return self.temporal(dropout(x, self.dropout, rng), turn, mask=mask, rng=rng)[:, given.tokens.shape[1] :]

    def _head(self, states: Tensor, level: int) -> Tensor:
        """states float [..., D'] of cells of one level -> [..., V], or V + 1 where there is an end id."""
        part, own, size = self.heads[level](states), self.spec.vocab_sizes[level], self.spec.vocab + self.ends
        if level == 0 and self.ends:
            gap = part.new_full((*part.shape[:-1], self.spec.vocab - own), float("-inf"))
            part = torch.cat((part[..., :own], gap, part[..., own:]), -1)
        return F.pad(part, (0, size - part.shape[-1]), value=float("-inf"))

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced, without a cache: -> float [B, S, 1, V], the law of every layout step given the steps before; as `logits`."""
        states = self._levels(self._hidden(tokens.codes, condition or Condition(), None), tokens.codes)
        tables = self._tables.on(states.device)
        every = torch.stack([self._head(states[:, :, k], k) for k in range(self.spec.levels)], 2)
        return every[:, tables.position, tables.level][:, :, None]

    # --------------------------------------------------------------------------------------------------------- likelihood

    def _nll(self, codes: Tensor, states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: nats [B, N] (0 where absent), and bool [B, N] where a code, or an end, is."""
        nats, present, exists = [], [], self._tables.on(codes.device).exists
        for k, head in enumerate(self.heads):
            target = codes[:, k]
            there = target >= 0
            if k == 0 and self.ends:  # the first cell beyond the item's length
                number = torch.where(there, torch.arange(1, target.shape[1] + 1, device=target.device), 0)
                behind = torch.arange(target.shape[1], device=target.device) >= number.amax(1, keepdim=True)
                ended = behind & exists[0] & ((behind & exists[0]).cumsum(1) == 1)
                target, there = torch.where(ended, self.spec.vocab_sizes[0], target), there | ended
            logits = head(states[:, :, k])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            nll = F.cross_entropy(logits.flatten(0, 1), target.masked_fill(~there, -100).flatten(), reduction="none").view_as(target)
            nats.append(nll)
            present.append(there)
        return nats, present

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """Mean nats per present cell and end. noise: rows' streams for condition dropout and dropout, which happen in training mode alone;
        terms: nll, and nll_level{k} where K > 1."""
        if self.training and rng is not None and self.condition_dropout:
            condition = condition.drop(rng.uniform() < self.condition_dropout)
        rng = rng if self.training else None
        states = self._levels(self._hidden(tokens.codes, condition, rng), tokens.codes, rng)
        nats, present = self._nll(tokens.codes, states)
        counts = torch.stack([there.sum() for there in present])
        sums, count = torch.stack([nll.sum() for nll in nats]), counts.sum()
        terms = {"nll": sums.detach().sum() / count.clamp(min=1)}
        if len(nats) > 1:
            terms |= {f"nll_level{k}": sums[k].detach() / counts[k].clamp(min=1) for k in range(len(nats))}
        return LossOutput(sums.sum() / count.clamp(min=1), count, torch.stack(nats).detach().sum((0, 2)), terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1) -> Tensor:
        """float [B]: the exact nats of each row (no draws, `samples` is not needed)."""
        nats, _ = self._nll(tokens.codes, self._levels(self._hidden(tokens.codes, condition, None), tokens.codes))
        return torch.stack(nats).sum((0, 2))

    # ------------------------------------------------------------------------------------------------------------- Causal

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> _Cache:
        """The cache holds all positions, whatever `capacity`."""
        given, device = self.conditioner(condition, batch), self.token_table.weight.device
        codes = torch.full((batch, self.spec.levels, self.spec.positions), ABSENT, dtype=torch.int64, device=device)
        if given.tokens is None or self.conditioner.by != "prefix":
            options = {"context": given.tokens, "context_mask": given.mask, "vector": given.vector}
            return _Cache(codes, self.temporal.init_cache(batch, self.spec.positions, **options), condition)
        prefix, tables = given.tokens.shape[1], self._tables.on(device)
        cache = self.temporal.init_cache(batch, self.spec.positions, prefix, given.mask)
        window = cache.window(torch.full((batch,), -prefix, device=device), prefix)
        self.temporal.extend(given.tokens, (tables.cos[given.place], tables.sin[given.place]), cache, window)
        return _Cache(codes, cache, condition)

    def logits(self, ids: Tensor, cache: _Cache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits; laws at fed steps beyond the layout's end are unspecified."""
        cache.tree = None if parents is None else ids
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
        states = self._levels(cache.hidden[rows, place], codes)
        level = tables.level[step]
        states = states[rows, tables.position[step] - near[:, None], level]  # [B, S, D']
        out = None
        for k in level.unique().tolist():
            here = level == k
            part = self._head(states[here], k)
            out = part.new_empty((*level.shape, part.shape[-1])) if out is None else out
            out[here] = part
        return out[:, :, None]

    def _write(self, codes: Tensor, ids: Tensor, fed: Tensor) -> None:
        """ids int64 [B, S] of fed steps int64 [B, S], each the cell of the layout step before, into codes [B, K, N]; begin is no cell."""
        tables = self._tables.on(ids.device)
        row, s = ((fed > 0) & (fed <= self.layout.steps)).nonzero(as_tuple=True)
        step = fed[row, s] - 1
        codes[row, tables.level[step], tables.position[step]] = ids[row, s]

    def _advance(self, cache: _Cache, at: Tensor, step: Tensor) -> None:
        """The temporal transformer over the positions that begin at these steps int64 [B, S], of which at[b] is each row's first."""
        tables = self._tables.on(at.device)
        first = torch.searchsorted(tables.begins, at.contiguous())  # the first position that begins at or behind `at`
        count = int((torch.searchsorted(tables.begins, step[:, -1].contiguous(), right=True) - first).max())
        if count < 1:
            return
        first = first.clamp(max=self.spec.positions - count)  # near the end some positions are computed once more
        rows, place = torch.arange(len(at), device=at.device)[:, None], first[:, None] + torch.arange(count, device=at.device)
        before = cache.codes.transpose(1, 2)[rows, (place - 1).clamp(min=0)].transpose(1, 2)
        x = self._embed(before, place)
        turn = (tables.cos[self.conditioner.places :][place], tables.sin[self.conditioner.places :][place])
        out = self.temporal.extend(x, turn, cache.temporal, cache.temporal.window(first, count))
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
        if path is None or cache.tree is None:
            return
        kept = torch.where(
            path >= 0, cache.tree[..., 0].gather(1, path.clamp(min=0)), ABSENT
        )  # what is fed behind a row's end is forgotten
        room = int((self.layout.steps - at).max())
        if kept[:, :room].numel():
            self.logits(kept[:, :room, None], cache, at)
