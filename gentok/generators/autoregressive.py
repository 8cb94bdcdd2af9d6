"""Next-token prediction over any layout: LlamaGen's model (Sun et al., arXiv 2406.06525) for K levels and
every modality.

    h_s      = transformer(begin, the ids of the layout steps before s)
    p(codes) = product over layout steps s and their slots of  softmax(head of the slot's level (h_s))[its code]

Fed step i holds the ids of layout step i - 1 (step 0: `begin`), summed over slots from per-level tables; the output at fed step i is the
distribution of layout step i, with one head per level. The slots of a step are predicted from one hidden state, hence independent given
the past: for layouts with several slots (delayed, parallel) that is exact for *this model's* distribution, and an approximation of the
data's (Copet et al., MusicGen, arXiv 2306.05284).

Deviations from LlamaGen: QK-norm; a learned embedding tells each fed step which cell comes next (level; row and column, or position);
queries are rotated by the cell that they predict and keys by the cell that they hold; the condition is a token before `begin` and not in
its place. Cells that are ABSENT are fed as a filler and carry no loss; with `ends`, the first of level 0 beyond an item's length carries
that of the end id. Of tokens with a grammar (gentok/grammar.py), ids that cannot follow have the logit -inf; where ids are steps on a
canvas, embeddings of the row and the column that they have led to are added to what is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.causal import CausalTransformer
from gentok.generators.cell_losses import cell_nats
from gentok.generators.step_tables import cells_of_levels, fed_rows
from gentok.generators.trimmed_head import TrimmedHead
from gentok.grammar import Follower, Grammar
from gentok.nn.cell_positions import cell_names, rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.kv_cache import KVCache
from gentok.nn.linear import Int8Linear, Linear, activations, product
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings, initialise_parts
from gentok.rng import RowRNG
from gentok.settings import Fraction
from gentok.types import Condition, ConditionSpec, Tokens, TokenSpec

__all__ = ["Autoregressive"]


class Autoregressive(CausalTransformer, id="generator/autoregressive"):
    """A causal transformer over the steps of a layout.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        layout: one of gentok.layouts.LAYOUTS.
        token_dropout: share of fed steps that are replaced by the filler in training.
        label_smoothing: of the training loss, from 0 to 1; the term nll is never smoothed.
        tie_embeddings: whether the head's weights are the input table's.
        zero_init_head: whether the first prediction is uniform.
        ends: whether items end by themselves, by an id of their own at level 0; else the sampler is given
            their lengths.
        transformer: as in TransformerSettings.

    Raises:
        ValueError: the layout does not fit, or the tokens have a grammar and items do not end by themselves.
    """

    follows_grammar = True
    moves_rows = True

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        layout: str = "auto",
        token_dropout: Fraction = 0.0,
        label_smoothing: Fraction = 0.0,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
        ends: bool = False,
        **transformer: TransformerOptions,
    ):
        if spec.grammar and not ends:
            raise ValueError("these tokens have a grammar, by which their items end: set generator.ends=true")
        settings = TransformerSettings(**transformer)
        super().__init__(spec, condition_spec, settings, layout, token_dropout, ends)
        self.rope = settings.rope
        self.grammar = Grammar(spec) if spec.grammar else None
        self.point_table = nn.Embedding(2 * spec.canvas, settings.width) if spec.canvas else None  # columns, then rows
        self.label_smoothing = label_smoothing
        codes, width = sum(spec.vocab_sizes), settings.width
        self.token_table = nn.Embedding(codes + spec.levels + 2, width)  # codes, a filler per level, begin, empty slot
        with torch.device("cpu"):
            names = self._compile(settings.rope)
        self.target_table = nn.Embedding(names, width) if names else None
        self.head = None if tie_embeddings else Linear(width, codes)
        initialise_parts(self.token_table, self.target_table, self.head, self.point_table)
        if zero_init_head and self.head is not None:
            nn.init.zeros_(self.head.weight)
        self.end = nn.Parameter(torch.zeros(1, width)) if ends else None

    def _compile(self, rope: str) -> int:
        """Makes index maps of the layout and rotation tables; returns how many rows the table of targets'
        names has."""
        layout, spec = self.layout, self.spec
        offset, absent = fed_rows(layout.level, layout.position, spec)
        level, position = layout.standing
        held = torch.cat((torch.tensor([-1]), position[:-1]))
        cos, sin = rotation_tables(spec, rope, self.conditioner.places, self.trunk.head_width, position, held)
        named, names = cell_names(spec, level if layout.slots == 1 else None, position)
        self._tables = Constants(offset=offset, absent=absent, level=layout.level, cos=cos, sin=sin, named=named)
        self._levels = cells_of_levels(layout)
        # Levels that a slot can hold: where there is one, its head is applied to all rows at once.
        self._slot_levels = [sorted({int(k) for k in layout.level[:, g] if k >= 0}) for g in range(layout.slots)]
        self._one_level = [len(set(layout.level[:, g].tolist())) == 1 for g in range(layout.slots)]
        return names

    # ------------------------------------------------------------------------------------------------ network

    def _embed(
        self, ids: Tensor, steps: Tensor | slice, hide: Tensor | None = None, names: Tensor | None = None, tables: Any = None
    ) -> Tensor:  # fmt: skip
        """ids int64 [B, S, G] at fed steps [S] or [B, S] -> [B, S, D]; hide bool [B, S]: read as absent; names float [steps, D]: what
        the steps' names add, where it is known; tables: offset, absent and named, where they are not the layout's."""
        tables = self._tables.on(ids.device) if tables is None else tables
        rows = torch.where(ids >= 0, ids + tables.offset[steps], tables.absent[steps])
        if hide is not None:
            rows = torch.where(hide[..., None], tables.absent[steps], rows)
        if rows.shape[2] == 1:
            x = self.token_table(rows[..., 0])
        else:
            x = F.embedding_bag(rows.flatten(0, 1), self.token_table.weight, mode="sum").view(*rows.shape[:2], -1)
        if names is not None:
            x = x + names[steps]
        elif self.target_table is not None:
            x = x + self.target_table(tables.named[steps]).sum(-2)
        return x

    def _hidden(
        self, codes: Tensor, condition: Condition, rng: RowRNG | None, taps: Mapping[int, list[Tensor]] | None = None, *, steps: Any = None
    ) -> Tensor:  # fmt: skip
        """codes int64 [B, K, N] -> [B, S, D]: the state that predicts each layout step, 0 from `steps` on; taps: as in `attend`."""
        self.check_shape(codes)
        ids = self.feed(codes)
        x = self._embed(ids, slice(None), self._hide(ids, rng))
        if self.point_table is not None:
            x = x + self._points(self.grammar.states(codes[:, 0]))
        if steps is None or steps == x.shape[1]:
            return self._attend(x, condition, rng, taps)
        return F.pad(self._attend(x[:, :steps], condition, rng, taps), (0, 0, 0, x.shape[1] - steps))

    def _points(self, states: Tensor) -> Tensor:
        """States int64 [B, S] of the grammar -> [B, S, D]: the points of the canvas that rows have come to."""
        x, y = self.grammar.point(states)
        return self.point_table(x) + self.point_table(y + self.grammar.canvas)

    def _hide(self, ids: Tensor, rng: RowRNG | None) -> Tensor | None:
        """ids int64 [B, S, G] -> bool [B, S]: the fed steps that token dropout hides."""
        if rng is None or not self.token_dropout:
            return None
        hide = rng.uniform(ids.shape[1]) < self.token_dropout
        return hide & (torch.arange(ids.shape[1], device=ids.device) > 0)

    def _level_hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[Tensor]:
        """Of each level the states [B, N_k, D] from which its cells are predicted; anything where there is nothing to predict."""
        return self._by_level(self._hidden(codes, condition, rng, steps=self._used_steps(codes, rng)))

    def _by_level(self, hidden: Tensor) -> list[Tensor]:
        """hidden [B, S, D] -> of each level [B, N_k, D]."""
        return [hidden[:, level.steps] for level in self._levels]

    def named(self, device: torch.device) -> Tensor:
        """int64 [S, names of a cell]: the rows of `target_table` that name what each fed step predicts."""
        return self._tables.on(device).named

    def level_weights(self, level: int) -> Tensor:
        """float [V_k, D]: the rows of the head that a level's codes have, without that of the end."""
        return self._weights(level)[: self.spec.vocab_sizes[level]]

    def _weights(self, level: int) -> Tensor:
        """[V_k, D]; of level 0 of a model that ends items, one row more."""
        rows = (self.token_table if self.head is None else self.head).weight[self._levels[level].vocab]
        return rows if level or self.end is None else torch.cat((rows, self.end.to(rows)))

    def _scores(self, hidden: Tensor, level: int, heads: Sequence[TrimmedHead] | None = None) -> Tensor:
        """hidden float [..., D] -> [..., V_k], or V_0 + 1."""
        if heads is not None:
            return heads[level](hidden)
        if not isinstance(self.head, Int8Linear):
            return product(hidden, self._weights(level))
        out = self.head(hidden, self._levels[level].vocab)
        return out if level or self.end is None else torch.cat((out, F.linear(hidden, self.end.to(hidden))), -1)

    def _logits(self, hidden: Tensor, level: Tensor, heads: Sequence[TrimmedHead] | None = None) -> Tensor:
        """hidden [B, S, D], the slots' level int64 [S, G] or [B, S, G], -1 where empty -> [B, S, G, ids]."""
        hidden = activations(hidden)
        batch, length, _ = hidden.shape
        if self.spec.levels == 1 and self._one_level == [True]:
            return self._scores(hidden, 0, heads).unsqueeze(2)
        level = level.expand(batch, length, -1)
        out = None
        for g, levels in enumerate(self._slot_levels):
            for k in levels:
                rows = None if self._one_level[g] else level[:, :, g] == k
                if rows is not None and not rows.any():
                    continue
                part = self._pad(self._scores(hidden if rows is None else hidden[rows], k, heads), k)
                if out is None:
                    out = part.new_full((batch, length, self.layout.slots, self.ids), float("-inf"))
                if rows is None:
                    out[:, :, g] = part
                else:
                    out[:, :, g].masked_scatter_(rows[..., None], part)
        if out is None:  # no step of these has a cell
            out = hidden.new_full((batch, length, self.layout.slots, self.ids), float("-inf"))
        out[..., 0].masked_fill_(level < 0, 0.0)
        return out

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced logits, without a cache.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows; None: null.

        Returns:
            float [B, S, G, ids]: of every layout step given the steps before, as `logits` gives them.
        """
        hidden = self._hidden(tokens.codes, condition or Condition(), None)
        out = self._logits(hidden, self._tables.on(hidden.device).level)
        if self.grammar is None:
            return out
        return out.masked_fill(~self.grammar.allowed(self.grammar.states(tokens.codes[:, 0]))[:, :, None], float("-inf"))

    def _level_nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self._nats(codes, self._level_hidden(codes, condition, rng), rng)

    def _nats(self, codes: Tensor, states: list[Tensor], rng: RowRNG | None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What `_level_nats` returns, of the states [B, N_k, D] of each level."""
        out = []
        for k, (level, hidden) in enumerate(zip(self._levels, states)):
            target, there = (part[:, level.positions] for part in self._targets(codes, k))
            nll, smoothed = cell_nats(
                partial(self._scores, level=k), hidden, target, there, ragged=self.ends,
                smoothing=self.label_smoothing if self.training else 0.0, grammar=self.grammar, states=self._states(codes, rng),
            )  # fmt: skip
            out.append((nll, smoothed, there))
        return out

    def _states(self, codes: Tensor, rng: RowRNG | None) -> Tensor | None:
        """codes int64 [B, 1, N] -> int64 [B, N], the state of the grammar in which each cell is predicted; None: any id may follow."""
        return None if self.grammar is None else self.grammar.states(codes[:, 0])

    # ------------------------------------------------------------------------------------------------- Causal

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        """As Causal.init_cache."""
        cache = self._start_cache(condition, batch, capacity)
        if self.target_table is not None and not torch.is_grad_enabled():
            cache.names = self.target_table(self._tables.on(self.token_table.weight.device).named).sum(-2)
        if self.grammar is not None:
            cache.follower = Follower(self.grammar, batch, capacity, self.token_table.weight.device)
        return cache

    def logits(self, ids: Tensor, cache: KVCache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits. An empty slot (which holds no cell at its step) reads as id 0 for certain; what
        is predicted at fed steps beyond the layout's end is unspecified."""
        window = cache.window(at, ids.shape[1], parents)
        steps = self._fed_steps(window, cache, at, ids.shape[1], ids.device)
        if cache.rotation is None or torch.is_grad_enabled():
            x, rope = self._embed(ids, steps), self._rotation(ids.device, steps)
        else:
            x, rope = self._embed(ids, steps, names=cache.names), (cache.rotation[0][steps], cache.rotation[1][steps])
        states = None if cache.follower is None else cache.follower.read(ids[..., 0], at, parents)
        if self.point_table is not None:
            x = x + self._points(states)
        hidden = self.trunk.extend(x, rope, cache, window)
        out = self._logits(hidden, self._tables.on(ids.device).level[steps], cache.heads)
        if states is None:
            return out
        allowed = cache.follower.grammar.allowed(states)
        return out.masked_fill(~allowed[:, :, None], float("-inf"))

    def commit(self, cache: KVCache, at: Tensor, path: Tensor | None = None) -> None:
        """As Causal.commit."""
        if path is not None:
            cache.commit(at, path)
            if cache.follower is not None:
                cache.follower.commit(at, path)

    def keep_ids(self, cache: KVCache, kept: Tensor) -> None:
        """As Causal.keep_ids."""
        if self.grammar is None and not isinstance(self.head, Int8Linear):
            cache.heads = [TrimmedHead(self._weights(k), kept[k, :size]) for k, size in enumerate(self.spec.vocab_sizes)]

    def take(self, cache: KVCache, rows: Tensor) -> KVCache:
        """As Causal.take."""
        return cache.take(rows)

    def put(self, cache: KVCache, rows: Tensor, other: KVCache) -> None:
        """As Causal.put."""
        cache.put(rows, other)
