"""What bidirectional token models share: a transformer over N positions that sees all of them, with the condition before, beside or inside.

The caller embeds its positions; this adds each one's place (learned, and by rotation), reads the condition as prefix tokens, by
cross-attention or by adaLN, and returns one state per position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gentok.nn.cell_positions import axes_of, cell_coordinates, cell_names, prefix_coordinates
from gentok.nn.conditioning import Conditioned, Conditioner
from gentok.nn.constants import Constants
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer, dropout, initialise
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, TokenSpec

__all__ = ["Bidirectional", "seeing_all"]


def seeing_all(
    transformer: Transformer, conditioner: Conditioner, tables: Any, x: Tensor, given: Conditioned, vector: Tensor | None,
    dropped: float, rng: RowRNG | None,
) -> Tensor:
    """x float [B, N, D] -> [B, N, D]: positions that see one another and what the conditioner made of the condition.

    tables.cos, tables.sin: rotations of the conditioner's places, then of the positions. vector: of adaLN, or None. dropped: share of x.
    """  # fmt: skip
    cos, sin, mask, prefix = tables.cos[conditioner.places :], tables.sin[conditioner.places :], None, 0
    context, context_mask = given.tokens, given.mask
    if given.tokens is not None and conditioner.by == "prefix":
        prefix, context, context_mask = given.tokens.shape[1], None, None
        if given.mask is not None:
            mask = torch.cat((given.mask, given.mask.new_ones(x.shape[:2])), 1)[:, None, None]
        x = torch.cat((given.tokens.to(x.dtype), x), 1)
        cos, sin = torch.cat((tables.cos[given.place], cos)), torch.cat((tables.sin[given.place], sin))
    x = dropout(x, dropped, rng)
    return transformer(x, (cos, sin), mask=mask, context=context, context_mask=context_mask, vector=vector, rng=rng)[:, prefix:]


class Bidirectional(nn.Module):
    """width D, depth, heads, hidden and activation: the transformer. condition_by: prefix, cross or adaln. rope: auto (axial on a raster),
    line, axial. dropout: of embeddings and branches."""

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        activation: str = "swiglu",
        condition_by: str = "prefix",
        rope: str = "auto",
        qk_norm: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        by = condition_by if condition_spec.parts else "prefix"
        self.dropout = dropout
        self.conditioner = Conditioner(condition_spec, width, condition_by)
        self.transformer = Transformer(
            width, depth, heads, hidden, causal=False, activation=activation, qk_norm=qk_norm, adaln=by == "adaln", cross=by == "cross",
            dropout=dropout,
        )  # fmt: skip
        with torch.device("cpu"):
            position, places, axes = torch.arange(spec.positions), self.conditioner.places, axes_of(spec, rope)
            before = prefix_coordinates(torch.arange(places), axes, places)
            cos, sin = rotation(
                torch.cat((before, cell_coordinates(spec, position, axes, places))), head_width=self.transformer.head_width
            )  # fmt: skip
            named, names = cell_names(spec, None, position)
            self._tables = Constants(cos=cos, sin=sin, named=named)
        self.place_table = nn.Embedding(names, width) if names else None
        if self.place_table is not None:
            initialise(self.place_table)

    def forward(self, x: Tensor, condition: Condition, rng: RowRNG | None = None) -> Tensor:
        """x float [B, N, D] -> [B, N, D], normalised. noise: for dropout; None for none."""
        tables = self._tables.on(x.device)
        if self.place_table is not None:
            x = x + self.place_table(tables.named).sum(-2)
        given = self.conditioner(condition, len(x))
        return seeing_all(self.transformer, self.conditioner, tables, x, given, given.vector, self.dropout, rng)
