"""Next-token prediction over any layout: LlamaGen's model (Sun et al., arXiv 2406.06525) for K levels and every modality.

Fed step i holds the ids of layout step i - 1 (step 0: `begin`), summed over slots from per-level tables; the output at fed step i is the
law of layout step i, with one head per level. The slots of a step are predicted from one hidden state, hence independent given the past:
for layouts with several slots (delayed, parallel) that is exact for *this model's* law, and an approximation of the data's
(Copet et al., MusicGen, arXiv 2306.05284).

Deviations from LlamaGen: QK-norm; each fed step is told by a learned embedding which cell comes next (level; row and column, or position);
queries turn with the cell that they predict and keys with the cell that they hold; the condition is a token before `begin` and not in its
place. Cells that are ABSENT are fed as a filler and carry no loss; with `ends`, the first of level 0 beyond an item's length carries that
of the end id. Of tokens with a grammar (gentok/grammar.py), ids that cannot follow have the logit -inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import Causal
from gentok.grammar import Follower, Grammar
from gentok.interfaces import Generator
from gentok.layouts import Layout
from gentok.nn.cell_positions import axes_of, cell_coordinates, cell_names, prefix_coordinates
from gentok.nn.conditioning import Conditioner
from gentok.nn.constants import Constants
from gentok.nn.kv_cache import KVCache
from gentok.nn.rope import Rotation, rotation
from gentok.nn.transformer import Transformer, dropout, initialise
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["Autoregressive"]


def _run(values: list[int]) -> slice | Tensor:
    """Indices as a slice where they are evenly spaced, so that taking them copies nothing."""
    step = values[1] - values[0] if len(values) > 1 else 1
    if step > 0 and values == list(range(values[0], values[0] + step * len(values), step)):
        return slice(values[0], values[-1] + 1, step)
    return torch.tensor(values, device="cpu")


@dataclass(frozen=True)
class _Level:
    """The cells of one level, in the order of their steps: where they are emitted, and where they lie."""

    steps: slice | Tensor
    slots: int | Tensor
    positions: slice | Tensor
    vocab: slice


class Autoregressive(Generator, Causal, id="generator/autoregressive"):
    """spec, condition_spec: what is modelled, given when the model is built.

    layout: one of gentok.layouts.LAYOUTS. width D, depth, heads, hidden (feed-forward; default 8/3 D): the transformer.
    condition_by: prefix, cross or adaln; condition_dropout: share of training rows whose condition becomes null, for guidance.
    rope: auto (axial on a raster), line, axial. dropout: of embeddings and branches; token_dropout: share of fed steps that are replaced by
    the filler in training; label_smoothing: of the training loss (nll is never smoothed).
    tie_embeddings: the head's weights are the input table's. zero_init_head: the first prediction is uniform.
    ends: items end by themselves, by an id of their own at level 0; else lengths are given to the sampler.
    """

    exact_slots = True
    follows_grammar = True

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        layout: str = "auto",
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        hidden: int | None = None,
        condition_by: str = "prefix",
        condition_dropout: float = 0.1,
        rope: str = "auto",
        qk_norm: bool = True,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
        ends: bool = False,
    ):
        super().__init__()
        self.spec, self.condition_spec, self.ends = spec, condition_spec or ConditionSpec(), ends
        self.grammar = Grammar(spec) if spec.grammar else None
        if self.grammar is not None and not ends:
            raise ValueError("these tokens have a grammar, by which their items end: set generator.ends=true")
        self.condition_dropout, self.dropout = condition_dropout, dropout
        self.token_dropout, self.label_smoothing = token_dropout, label_smoothing
        with torch.device("cpu"):
            self.layout = Layout.of(layout, spec)
            self.begin = torch.full((self.layout.slots,), spec.vocab, dtype=torch.int64)
        by = condition_by if self.condition_spec.parts else "prefix"
        self.conditioner = Conditioner(self.condition_spec, width, condition_by)
        self.transformer = Transformer(
            width, depth, heads, hidden, causal=True, qk_norm=qk_norm, adaln=by == "adaln", cross=by == "cross", dropout=dropout
        )
        codes = sum(spec.vocab_sizes)
        self.token_table = nn.Embedding(codes + spec.levels + 2, width)  # codes, a filler per level, begin, empty slot
        with torch.device("cpu"):
            names = self._compile(axes_of(spec, rope), codes)
        self.target_table = nn.Embedding(names, width) if names else None
        self.head = None if tie_embeddings else nn.Linear(width, codes, bias=False)
        for part in (self.token_table, self.target_table, self.head):
            if part is not None:
                initialise(part)
        if zero_init_head and self.head is not None:
            nn.init.zeros_(self.head.weight)
        self.end = nn.Parameter(torch.zeros(1, width)) if ends else None

    def _compile(self, axes: int, codes: int) -> int:
        """The layout as index maps and rotation tables; returns the rows of the table of targets' names."""
        layout, spec = self.layout, self.spec
        starts = torch.tensor([sum(spec.vocab_sizes[:k]) for k in range(spec.levels)])
        begin, empty = codes + spec.levels, codes + spec.levels + 1
        # What fed step i reads: a code's row is its id + offset, a cell without a code reads `absent`.
        source = layout.level[:-1]
        offset = torch.where(source >= 0, starts[source.clamp(min=0)], 0)
        absent = torch.where(source >= 0, codes + source, empty)
        first = torch.full((1, layout.slots), empty)
        first[0, 0] = begin
        # Which cell stands for a step: its first slot that holds one.
        chosen = layout.exists.to(torch.int64).argmax(1, keepdim=True)
        level, position = layout.level.gather(1, chosen)[:, 0], layout.position.gather(1, chosen)[:, 0]
        held = torch.cat((torch.tensor([-1]), position[:-1]))
        places = self.conditioner.places
        head_width = self.transformer.head_width
        target = cell_coordinates(spec, position, axes, places)
        own = cell_coordinates(spec, held, axes, places)
        before = prefix_coordinates(torch.arange(places), axes, places)
        cos, sin = rotation(torch.cat((before, target)), torch.cat((before, own)), head_width=head_width)
        named, names = cell_names(spec, level if layout.slots == 1 else None, position)
        vacant = (~layout.exists).nonzero()
        self._tables = Constants(
            offset=torch.cat((first - spec.vocab, offset)),
            absent=torch.cat((first, absent)),
            level=layout.level,
            cos=cos,
            sin=sin,
            named=named,
            vacant_steps=vacant[:, 0],
            vacant_slots=vacant[:, 1],
        )
        self._levels: list[_Level] = []
        for k, size in enumerate(spec.vocab_sizes):
            positions = (layout.step[k] >= 0).nonzero()[:, 0]
            steps, slots = layout.step[k, positions], layout.slot[k, positions]
            vocab = slice(int(starts[k]), int(starts[k]) + size)
            slot = int(slots[0]) if bool((slots == slots[0]).all()) else slots
            self._levels.append(_Level(_run(steps.tolist()), slot, _run(positions.tolist()), vocab))
        # Levels that a slot can hold: where there is one, its head is applied to all rows at once.
        self._slot_levels = [sorted({int(k) for k in layout.level[:, g] if k >= 0}) for g in range(layout.slots)]
        return names

    # ------------------------------------------------------------------------------------------------------------ network

    def _embed(self, ids: Tensor, steps: Tensor | slice, hide: Tensor | None = None) -> Tensor:
        """ids int64 [B, S, G] at fed steps [S] or [B, S] -> [B, S, D]; hide bool [B, S]: read as absent."""
        tables = self._tables.on(ids.device)
        rows = torch.where(ids >= 0, ids + tables.offset[steps], tables.absent[steps])
        if hide is not None:
            rows = torch.where(hide[..., None], tables.absent[steps], rows)
        if rows.shape[2] == 1:
            x = self.token_table(rows[..., 0])
        else:
            x = F.embedding_bag(rows.flatten(0, 1), self.token_table.weight, mode="sum").view(*rows.shape[:2], -1)
        if self.target_table is not None:
            x = x + self.target_table(tables.named[steps]).sum(-2)
        return x

    def _rotation(self, device: torch.device, place: Tensor | None = None, steps: Tensor | slice | None = None) -> Rotation:
        tables = self._tables.on(device)
        places = self.conditioner.places
        out = []
        for table in (tables.cos, tables.sin):
            parts = [] if place is None else [table[place]]
            if steps is not None:
                parts.append(table[places:][steps])
            out.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return out[0], out[1]

    def _weights(self, level: int) -> Tensor:
        """[V_k, D]; of level 0 of a model that ends items, one row more."""
        rows = (self.token_table if self.head is None else self.head).weight[self._levels[level].vocab]
        return rows if level or self.end is None else torch.cat((rows, self.end.to(rows)))

    @property
    def _ids(self) -> int:
        """How many ids logits have."""
        return self.spec.vocab + self.ends

    def _logits(self, hidden: Tensor, level: int) -> Tensor:
        """hidden [..., D] -> logits [..., V_k], or [..., spec.vocab + 1] where the end id is among them."""
        out, size = F.linear(hidden, self._weights(level)), self.spec.vocab_sizes[level]
        if level or not self.ends or size == self.spec.vocab:
            return out
        gap = out.new_full((*out.shape[:-1], self.spec.vocab - size), float("-inf"))
        return torch.cat((out[..., :size], gap, out[..., size:]), -1)

    def _hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, K, N] -> [B, S, D]: the state from which each layout step is predicted. noise: for dropout; None for none."""
        if codes.shape[1:] != self.layout.step.shape:
            raise ValueError(
                f"these tokens have {codes.shape[1]} levels x {codes.shape[2]} positions; "
                f"this generator models {self.spec.levels} x {self.spec.positions}"
            )
        batch = codes.shape[0]
        flat = self.layout.flatten(codes)
        ids = torch.cat((self.begin.to(codes.device).expand(batch, 1, -1), flat[:, :-1]), 1)
        hide = None
        if rng is not None and self.token_dropout:
            hide = rng.uniform(ids.shape[1]) < self.token_dropout
            hide = hide & (torch.arange(ids.shape[1], device=ids.device) > 0)
        x = self._embed(ids, slice(None), hide)
        given = self.conditioner(condition, batch)
        if given.tokens is None or self.conditioner.by != "prefix":
            turn = self._rotation(ids.device, steps=slice(None))
            x = dropout(x, self.dropout, rng)
            return self.transformer(x, turn, context=given.tokens, context_mask=given.mask, vector=given.vector, rng=rng)
        prefix = given.tokens.shape[1]
        x = torch.cat((given.tokens.to(x.dtype), x), 1)
        turn = self._rotation(ids.device, given.place, slice(None))
        mask = None
        if given.mask is not None:
            seen = torch.cat((given.mask, given.mask.new_ones(batch, ids.shape[1])), 1)
            triangle = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = (triangle & seen[:, None])[:, None]
        return self.transformer(dropout(x, self.dropout, rng), turn, mask=mask, rng=rng)[:, prefix:]

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced, without a cache: -> float [B, S, G, V], the law of every layout step given the steps before; as `logits`."""
        hidden = self._hidden(tokens.codes, condition or Condition(), None)
        tables = self._tables.on(hidden.device)
        out = None
        for k, level in enumerate(self._levels):
            part = self._logits(hidden[:, level.steps], k)
            if out is None:
                out = part.new_full((*hidden.shape[:2], self.layout.slots, self._ids), float("-inf"))
            out[:, level.steps, level.slots, : part.shape[-1]] = part
        out[:, tables.vacant_steps, tables.vacant_slots, 0] = 0.0
        if self.grammar is not None:
            out = out.masked_fill(~self.grammar.allowed(self.grammar.states(tokens.codes[:, 0]))[:, :, None], float("-inf"))
        return out

    # --------------------------------------------------------------------------------------------------------- likelihood

    def _nll(self, codes: Tensor, hidden: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: nats [B, N_k] (0 where absent), the same smoothed, and bool [B, N_k] where a code is."""
        nats, losses, present = [], [], []
        for k, level in enumerate(self._levels):
            target = codes[:, k, level.positions]
            logits = F.linear(hidden[:, level.steps], self._weights(k))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            allowed = None
            if self.grammar is not None:
                allowed = self.grammar.allowed(self.grammar.states(target))
                logits = logits.masked_fill(~allowed, float("-inf"))
            there = target >= 0
            if k == 0 and self.ends:
                ended = ~there & F.pad(there, (1, -1), value=True)  # the first cell beyond the item's length
                target, there = torch.where(ended, self.spec.vocab_sizes[0], target), there | ended
            nll = F.cross_entropy(logits.flatten(0, 1), target.masked_fill(~there, -100).flatten(), reduction="none").view_as(target)
            smooth = nll
            if self.training and self.label_smoothing:
                # Against the uniform law of what is possible: logsumexp - mean(logits), and nll + logit of the target is the logsumexp.
                chosen = logits.gather(2, target.clamp(min=0)[..., None])[..., 0]
                mean = logits.mean(2) if allowed is None else logits.masked_fill(~allowed, 0.0).sum(2) / allowed.sum(2)
                uniform = (nll + chosen - mean).masked_fill(~there, 0.0)
                smooth = torch.lerp(nll, uniform, self.label_smoothing)
            nats.append(nll)
            losses.append(smooth)
            present.append(there)
        return nats, losses, present

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """Mean nats per present cell and end. noise: rows' streams for condition dropout, dropout and token dropout, which happen in
        training mode alone; terms: nll, and nll_level{k} where K > 1."""
        if self.training and rng is not None and self.condition_dropout:
            condition = condition.drop(rng.uniform() < self.condition_dropout)
        hidden = self._hidden(tokens.codes, condition, rng if self.training else None)
        nats, losses, present = self._nll(tokens.codes, hidden)
        counts = torch.stack([there.sum() for there in present])
        count = counts.sum()
        sums = torch.stack([nll.detach().sum() for nll in nats])
        terms = {"nll": sums.sum() / count.clamp(min=1)}
        if len(nats) > 1:
            terms |= {f"nll_level{k}": sums[k] / counts[k].clamp(min=1) for k in range(len(nats))}
        rows = torch.stack([nll.detach().sum(1) for nll in nats]).sum(0)
        total = torch.stack([part.sum() for part in losses]).sum()
        return LossOutput(total / count.clamp(min=1), count, rows, terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1) -> Tensor:
        """float [B]: nats of each row. Here the exact -log p (no draws, `samples` is not needed): the tightest of bounds."""
        nats, _, _ = self._nll(tokens.codes, self._hidden(tokens.codes, condition, None))
        return torch.stack([nll.sum(1) for nll in nats]).sum(0)

    # ------------------------------------------------------------------------------------------------------------- Causal

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        cache = self._start(condition, batch, capacity)
        if self.grammar is not None:
            cache.follower = Follower(self.grammar, batch, capacity, self.token_table.weight.device)
        return cache

    def _start(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        given = self.conditioner(condition, batch)
        if given.tokens is None or self.conditioner.by != "prefix":
            return self.transformer.init_cache(batch, capacity, context=given.tokens, context_mask=given.mask, vector=given.vector)
        prefix = given.tokens.shape[1]
        cache = self.transformer.init_cache(batch, capacity, prefix, given.mask)
        at = torch.full((batch,), -prefix, device=given.tokens.device)
        turn = self._rotation(given.tokens.device, given.place)
        self.transformer.extend(given.tokens, turn, cache, cache.window(at, prefix))
        return cache

    def logits(self, ids: Tensor, cache: KVCache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits. An empty slot (which holds no cell at its step) reads as id 0 for certain; laws at fed steps
        beyond the layout's end are unspecified."""
        window = cache.window(at, ids.shape[1], parents)
        last = self.layout.steps - 1
        if window.start is not None and window.depth is None:  # every row stands at the same step
            first = window.start - cache.prefix
            steps: Tensor | slice = slice(first, first + ids.shape[1])
            if steps.stop > last + 1:
                steps = torch.arange(steps.start, steps.stop, device=ids.device).clamp(max=last)
        else:
            depth = torch.arange(ids.shape[1], device=ids.device) if window.depth is None else window.depth
            steps = (at[:, None] + depth).clamp(max=last)
        hidden = self.transformer.extend(self._embed(ids, steps), self._rotation(ids.device, steps=steps), cache, window)
        out = self._heads(hidden, self._tables.on(ids.device).level[steps])
        if cache.follower is None:
            return out
        allowed = cache.follower.grammar.allowed(cache.follower.read(ids[..., 0], at, parents))
        return out.masked_fill(~allowed[:, :, None], float("-inf"))

    def _heads(self, hidden: Tensor, level: Tensor) -> Tensor:
        """hidden [B, S, D], level int64 [S, G] or [B, S, G] -> logits [B, S, G, V]."""
        batch, length, _ = hidden.shape
        if self.spec.levels == 1 and self.layout.slots == 1:
            return F.linear(hidden, self._weights(0)).unsqueeze(2)
        level = level.expand(batch, length, -1)
        out = None
        for g, levels in enumerate(self._slot_levels):
            for k in levels:
                rows = level[:, :, g] == k
                if not rows.any():
                    continue
                part = self._logits(hidden[rows], k)
                if out is None:
                    out = part.new_full((batch, length, self.layout.slots, self._ids), float("-inf"))
                out[:, :, g, : part.shape[-1]].masked_scatter_(rows[..., None], part)
        out[..., 0].masked_fill_(level < 0, 0.0)
        return out

    def commit(self, cache: KVCache, at: Tensor, path: Tensor | None = None) -> None:
        if path is not None:
            cache.commit(at, path)
            if cache.follower is not None:
                cache.follower.commit(at, path)
