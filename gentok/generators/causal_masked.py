"""Causal masking: next-token prediction that can also fill holes, given what stands on both sides of them (CM3:
Aghajanyan et al., arXiv 2201.07520).

    log p(item | its holes) = sum over kept cells of   log p(cell | the kept cells and sentinels before it)
                            + sum over cells in holes  log p(cell | all kept cells, the cells of holes before it)

In training random holes of an item are cut out; a sentinel stays in the place of each, and what was in them follows
at the end, each after its sentinel (generators/hole_order.py). Every cell is predicted once, sentinels never. An item
without holes is one of the autoregressive model, whose network and loss this is, and which it samples and scores as
long as known cells come first. Else a sampler, or the likelihood of a region, gets the order with holes at the end:
the same model with another layout (`arranged`), exact for every causal sampler.

Of tokens with a grammar, what is filled in can be read together with what is kept (generators/hole_grammar.py).

What is filled in follows p(hole | both sides) as it was trained: that is no conditional of the distribution of items
without holes.

Deviations from CM3: the number of holes may be 0, and is not raised to 1; sizes are uniform, and a hole that overlaps
an earlier one is left out; on a raster holes are boxes, with one sentinel, unless shape=spans; the cells of a hole
are told by their places which they are, so that holes need no end of their own; no document is cut.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.hole_grammar import HoleGrammar
from gentok.generators.hole_order import HolesLast, StepMaps, arrange, most_steps
from gentok.generators.holes import draw_holes, find_holes
from gentok.generators.step_tables import fed_rows
from gentok.nn.cell_positions import cell_names, rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.token_transformer import TransformerSettings, attend, initialise_parts
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, PositiveInt
from gentok.types import ABSENT, Condition, ConditionSpec, Tokens, TokenSpec

__all__ = ["CausalMasked"]


class CausalMasked(Autoregressive, id="generator/causal_masked"):
    """The autoregressive model, trained on items with holes too.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        holes: mean of the Poisson distribution of the number of holes in a training item.
        max_holes: what it is clipped to; also the most that can be filled.
        shape: boxes (spans where tokens lie on no raster), or spans of the layout's positions.
        options: those of Autoregressive, and of TransformerSettings.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        holes: NonNegativeFloat = 1.0,
        max_holes: PositiveInt = 8,
        shape: Literal["boxes", "spans"] = "boxes",
        **options: Annotated[Any, Autoregressive],
    ):
        if spec.canvas:
            raise ValueError("a hole among steps on a canvas would move all that follows: holes need tokenizer.relative=false")
        super().__init__(spec, condition_spec, **options)
        self.holes, self.max_holes, self.boxes = holes, max_holes, shape == "boxes"
        rows, width = self.token_table.weight.shape
        self.token_table = nn.Embedding(rows + max_holes, width)  # behind the others, a row for each sentinel
        initialise_parts(self.token_table)
        named = {f.name for f in fields(TransformerSettings)}
        self._rope = TransformerSettings(**{name: value for name, value in options.items() if name in named}).rope
        with torch.device("cpu"):
            every = torch.arange(-1, spec.positions)
            cos, sin = rotation_tables(spec, self._rope, self.conditioner.places, self.trunk.head_width, every)
            self._stands = Constants(cos=cos, sin=sin)

    # ----------------------------------------------------------------------------------------------- training

    def _level_hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> list[Tensor]:
        if rng is None or not self.holes:
            return super()._level_hidden(codes, condition, rng)
        self.check_shape(codes)
        holes = draw_holes(Tokens(codes, self.spec), self.holes, self.max_holes, self.boxes, rng.fork("holes"))
        # Dropout draws numbers for every step: how many there are must not depend on the other rows.
        steps = most_steps(self.layout, self.max_holes) if self.dropout else None
        return self._arranged_hidden(codes, arrange(holes, self.layout, steps), condition, rng)

    def _arranged_hidden(self, codes: Tensor, maps: StepMaps, condition: Condition, rng: RowRNG | None) -> list[Tensor]:
        """As `_level_hidden`, in an order that each row has for itself."""
        batch, steps, slots = maps.level.shape
        row = torch.arange(batch, device=codes.device)[:, None, None]
        ids = codes[row, maps.level.clamp(min=0), maps.position.clamp(min=0)].masked_fill(maps.level < 0, ABSENT)
        ids = torch.cat((self.begin.to(ids).expand(batch, 1, slots), ids[:, :-1]), 1)
        offset, absent = fed_rows(maps.level, maps.position, self.spec)
        named, _ = cell_names(self.spec, maps.level[..., 0].clamp(min=0) if slots == 1 else None, maps.place)
        tables = SimpleNamespace(offset=offset, absent=absent, named=named)
        x = self._embed(ids, slice(None), self._hide(ids, rng), tables=tables)
        # Queries are rotated by where a step stands, keys by where the one before it does.
        given, places, stands = self.conditioner(condition, batch), self.conditioner.places, self._stands.on(codes.device)
        query, key = places + 1 + maps.place, places + F.pad(maps.place[:, :-1] + 1, (1, 0))
        cos, sin = (
            torch.cat((table[:places], torch.cat((table[query][..., :1, :, :], table[key][..., 1:, :, :]), -3).flatten(0, 1)))
            for table in (stands.cos, stands.sin)
        )
        tokens = places + torch.arange(batch * steps, device=codes.device).view(batch, steps)
        hidden = attend(self.trunk, x, given, (cos, sin), tokens, rate=self.dropout, rng=rng)
        of_cells = (maps.step[:, k, level.positions] for k, level in enumerate(self._levels))
        return [hidden.gather(1, step[..., None].expand(-1, -1, hidden.shape[2])) for step in of_cells]

    def _states(self, codes: Tensor, rng: RowRNG | None) -> Tensor | None:
        """Before a hole is filled it is not known which parts may follow behind it: items with holes are learnt without the grammar."""
        if rng is not None and self.holes:
            return None
        states = super()._states(codes, rng)
        return states[:, self._levels[0].steps] if isinstance(self.grammar, HoleGrammar) else states

    # ----------------------------------------------------------------------------------------------- sampling

    def arranged(self, tokens: Tokens) -> CausalMasked:
        """As Capability.arranged: where a known cell comes after a masked one, the model in the order with holes at
        the end, which has the same weights. All rows must have the same holes."""
        step, last = self.layout.step.to(tokens.codes.device), self.layout.steps
        first = torch.where(tokens.masked, step, last).flatten(1).amin(1)
        if not bool((tokens.present & (step > first[:, None, None])).any()):
            return self
        holes = find_holes(tokens, self.boxes)
        count = int(holes.max()) + 1
        if count > self.max_holes:
            kind = "boxes" if self.boxes else "spans"
            raise ValueError(
                f"what is to be filled in are {count} {kind}, this model was trained with {self.max_holes} at most (generator.max_holes)"
            )
        model = self.with_holes(holes)
        if self.grammar is not None:
            model.grammar = HoleGrammar(tokens, holes, model.layout)
        return model

    def with_holes(self, holes: Tensor) -> CausalMasked:
        """This model, with the same weights, in the order of items with the same holes, and without a grammar.

        Args:
            holes: int64 [N], the number of the hole that each position lies in, -1 where it is kept.
        """
        other = copy.copy(self)
        with torch.device("cpu"):
            other.layout = HolesLast(holes, self.layout)
            other._compile(self._rope)
        other.grammar = None
        return other
