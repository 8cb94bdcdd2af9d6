"""What the bidirectional token transformers share: tables of tokens and places, the condition, heads, and the
any-order bound.

The input at a position is the sum over levels of each cell's embedding (its code, "masked" or "absent"), and
the position's place. There is one head per level, whose weights may be the table's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.masked_losses import Objective
from gentok.interfaces import Generator
from gentok.nn.cell_positions import cell_names, rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.token_transformer import TransformerSettings, attend, full_precision, initialise_parts, token_nll, uniform_nll
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, TokenSpec

__all__ = ["BidirectionalTransformer"]


class BidirectionalTransformer(Generator):
    """Base class; a subclass has an objective.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        settings: of the transformer.
        position: int64 [C] on the CPU, of the transformer's tokens; None: all N positions.
        level: int64 [C] on the CPU, their level, where a token is a single cell.
        activation: of the feed-forward part, swiglu or gelu.
        uses_time: whether the network is given the masked share (by adaLN).
        tie_embeddings: whether the head's weights are the input table's.
        zero_init_head: whether the first prediction is uniform.

    Attributes:
        network: further arguments of Transformer, of a subclass.
        head_bias: whether the head has one, of a subclass.
        vocab: for each level, the rows of its codes in the table and in the head.
    """

    network: ClassVar[Mapping[str, Any]] = {}
    head_bias: ClassVar[bool] = False

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None,
        settings: TransformerSettings,
        position: Tensor | None = None,
        level: Tensor | None = None,
        activation: str = "swiglu",
        uses_time: bool = False,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
    ):
        super().__init__()
        self.spec, self.condition_spec, self.uses_time = spec, condition_spec or ConditionSpec(), uses_time
        self.condition_dropout, self.dropout = settings.condition_dropout, settings.dropout
        self.conditioner, self.transformer = settings.build(
            self.condition_spec, uses_time, causal=False, activation=activation, **self.network
        )
        codes, levels, width = sum(spec.vocab_sizes), spec.levels, settings.width
        self.vocab = [slice(sum(spec.vocab_sizes[:k]), sum(spec.vocab_sizes[: k + 1])) for k in range(levels)]
        self.token_table = nn.Embedding(codes + 2 * levels, width)  # codes, then two marks per level
        self.head = None if tie_embeddings else nn.Linear(width, codes, bias=self.head_bias)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if uses_time else None
        with torch.device("cpu"):
            position = torch.arange(spec.positions) if position is None else position
            cos, sin = rotation_tables(spec, settings.rope, self.conditioner.places, self.transformer.head_width, position)
            named, names = cell_names(spec, level, position)
            starts = torch.tensor([part.start for part in self.vocab])
            self._tables = Constants(
                cos=cos, sin=sin, named=named, start=starts[:, None], masked=codes + torch.arange(levels)[:, None],
                rates=10000.0 ** (-torch.arange(width // 2) / (width // 2)),
            )  # fmt: skip
        self.place_table = nn.Embedding(names, width) if names else None
        initialise_parts(self.token_table, self.place_table, self.head, self.time)
        if zero_init_head and self.head is not None:
            nn.init.zeros_(self.head.weight)

    def _time(self, t: Tensor) -> Tensor:
        """t float [B] in [0, 1] -> [B, D]."""
        weight = self.time[0].weight
        angles = 1000.0 * t[:, None].to(weight.dtype) * self._tables.on(t.device).rates.to(weight.dtype)
        waves = torch.cat((angles.cos(), angles.sin()), 1)
        return self.time(F.pad(waves, (0, weight.shape[1] - waves.shape[1])))

    def _hidden(self, codes: Tensor, condition: Condition, t: Tensor | None, rng: RowRNG | None) -> Tensor:
        """The state of every position.

        codes int64 [B, K, N] with UNKNOWN cells -> [B, N, D]. t: float [B], the masked share; None: as the
        codes have it. rng: for dropout.
        """
        self.check_shape(codes)
        batch, levels, length = codes.shape
        tables = self._tables.on(codes.device)
        rows = torch.where(codes >= 0, codes + tables.start, tables.masked + levels * (codes == ABSENT))
        if levels == 1:
            x = self.token_table(rows[:, 0])
        else:
            rows = rows.transpose(1, 2).reshape(-1, levels)
            x = F.embedding_bag(rows, self.token_table.weight, mode="sum").view(batch, length, -1)
        if self.place_table is not None:
            x = x + self.place_table(tables.named).sum(-2)
        given = self.conditioner(condition, batch)
        if self.uses_time:
            if t is None:
                t = (codes == UNKNOWN).flatten(1).sum(1) / (codes != ABSENT).flatten(1).sum(1).clamp(min=1)
            time = self._time(t.to(codes.device))
            given = replace(given, vector=time if given.vector is None else given.vector + time)
        tokens = slice(self.conditioner.places, None)
        return attend(self.transformer, x, given, (tables.cos, tables.sin), tokens, rate=self.dropout, rng=rng)

    def _weights(self, level: int) -> Tensor:
        """[V_k, D], of the head of a level."""
        return (self.token_table if self.head is None else self.head).weight[self.vocab[level]]

    def _scores(self, hidden: Tensor, level: int) -> Tensor:
        """[..., D] -> [..., V_k], by the head of a level."""
        bias = None if self.head is None or self.head.bias is None else self.head.bias[self.vocab[level]]
        return F.linear(hidden, self._weights(level), bias)

    def _logits(self, hidden: Tensor) -> Tensor:
        """States of positions [B, N, D] -> [B, K, N, V]."""
        parts = [self._scores(hidden, k) for k in range(self.spec.levels)]
        if len(parts) == 1:
            return parts[0][:, None]  # no copy of what is the largest tensor of all
        return torch.stack([F.pad(part, (0, self.spec.vocab - part.shape[-1]), value=float("-inf")) for part in parts], 1)

    def _nll(self, codes: Tensor, hidden: Tensor, chosen: Tensor, smoothed: bool = False) -> tuple[Tensor, Tensor]:
        """Nats [B, K, N] of the chosen cells, bool [B, K, N], 0 elsewhere; and, if smoothed, the same against
        the uniform distribution."""
        nats, uniform = [], []
        for k in range(self.spec.levels):
            logits = full_precision(self._scores(hidden, k))
            nats.append(token_nll(logits, codes[:, k], chosen[:, k]))
            if smoothed:
                uniform.append(uniform_nll(logits, nats[-1], codes[:, k], chosen[:, k]))
        nll = torch.stack(nats, 1)
        return nll, torch.stack(uniform, 1) if smoothed else nll

    def _level_terms(self, nll: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """The terms nll_level{k}, where there are several levels: mean nats [B, K, N] of the chosen cells,
        bool [B, K, N], of each."""
        if self.spec.levels == 1:
            return {}
        means = nll.detach().sum((0, 2)) / chosen.sum((0, 2)).clamp(min=1)
        return {f"nll_level{k}": means[k] for k in range(self.spec.levels)}

    def _bound(self, objective: Objective, codes: Tensor, condition: Condition, rng: RowRNG, samples: int) -> Tensor:
        """float64 [B]: an estimate of the objective's bound, by `samples` masks per row at times that are
        spread evenly over (0, 1)."""
        offset = rng.uniform()
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            drawn = objective.at(codes, (offset + j / samples) % 1.0, rng)
            hidden = self._hidden(codes.masked_fill(drawn.cells, UNKNOWN), condition, drawn.time, None)
            total += self._nll(codes, hidden, drawn.cells)[0].flatten(1).sum(1).double() * drawn.weight
        return total / samples
