"""Masked token modelling: MaskGIT's model (Chang et al., arXiv 2202.04200) for K levels and every modality, also as a masked diffusion.

A bidirectional transformer reads every position at once: the sum over levels of each cell's embedding (its code, "masked" or "absent"), the
cell's place, and the condition. It has one head per level at every position. In training cells are hidden, any cell on its own (K > 1:
also single levels of a position), and the loss is the cross-entropy of the hidden ones, weighted by the objective: MaskGIT's, the
continuous-time bound of masked diffusion, or its time-free form (generators/masked_losses.py).

Deviations from MaskGIT: pre-norm, RMSNorm, rotary embedding beside the learned places, QK-norm, a plain linear head; a mask id per level.
With objective = maskgit, `loss` is no likelihood (it weighs mask sizes by gamma); `nll_bound` always is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import Masked
from gentok.generators.masked_losses import SCHEDULES, ByLevelObjective, hide
from gentok.generators.masked_losses import objective as make_objective
from gentok.interfaces import Generator
from gentok.nn.bidirectional import seeing_all
from gentok.nn.cell_positions import axes_of, cell_coordinates, cell_names, prefix_coordinates
from gentok.nn.conditioning import Conditioner
from gentok.nn.constants import Constants
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer, initialise
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["MaskedTransformer", "SCHEDULES", "hide"]

_BY_COUNT = make_objective("any_order", "linear", "independent")
_BY_TIME = make_objective("elbo", "linear", "independent")


class MaskedTransformer(Generator, Masked, id="generator/masked"):
    """spec, condition_spec: what is modelled, given when the model is built.

    width D, depth, heads, hidden and activation (swiglu, gelu) of the feed-forward part: the transformer.
    condition_by: prefix, cross or adaln; condition_dropout: share of training rows whose condition becomes null, for guidance.
    rope: auto (axial on a raster), line, axial.
    objective: maskgit, elbo, any_order or by_level; schedule: of the masked share in training (flow/absorbing.py; not any_order's); times:
    independent, or stratified over a batch. uses_time: the network is told the masked share (by adaLN).
    label_smoothing: of the training loss, with any objective. dropout: of embeddings and branches.
    tie_embeddings: the head's weights are the input table's. zero_init_head: the first prediction is uniform.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        hidden: int | None = None,
        activation: str = "swiglu",
        condition_by: str = "prefix",
        condition_dropout: float = 0.1,
        rope: str = "auto",
        qk_norm: bool = True,
        objective: str = "maskgit",
        schedule: str = "cosine",
        times: str = "independent",
        uses_time: bool = False,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
    ):
        super().__init__()
        self.objective = make_objective(objective, schedule, times)
        self.spec, self.condition_spec = spec, condition_spec or ConditionSpec()
        self.uses_time = uses_time
        self.condition_dropout, self.dropout, self.label_smoothing = condition_dropout, dropout, label_smoothing
        by = condition_by if self.condition_spec.parts else "prefix"
        self.conditioner = Conditioner(self.condition_spec, width, condition_by)
        self.transformer = Transformer(
            width,
            depth,
            heads,
            hidden,
            causal=False,
            activation=activation,
            qk_norm=qk_norm,
            adaln=uses_time or by == "adaln",
            cross=by == "cross",
            dropout=dropout,
        )
        codes, levels = sum(spec.vocab_sizes), spec.levels
        self.vocab = [slice(sum(spec.vocab_sizes[:k]), sum(spec.vocab_sizes[: k + 1])) for k in range(levels)]
        self.token_table = nn.Embedding(codes + 2 * levels, width)  # codes, "masked" per level, "absent" per level
        self.head = None if tie_embeddings else nn.Linear(width, codes, bias=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if uses_time else None
        with torch.device("cpu"):
            position, places, axes = torch.arange(spec.positions), self.conditioner.places, axes_of(spec, rope)
            before = prefix_coordinates(torch.arange(places), axes, places)
            cells = cell_coordinates(spec, position, axes, places)
            cos, sin = rotation(torch.cat((before, cells)), head_width=self.transformer.head_width)
            named, names = cell_names(spec, None, position)
            starts = torch.tensor([part.start for part in self.vocab])
            self._tables = Constants(
                cos=cos, sin=sin, named=named, start=starts[:, None], masked=codes + torch.arange(levels)[:, None],
                rates=10000.0 ** (-torch.arange(width // 2) / (width // 2)),
            )  # fmt: skip
        self.place_table = nn.Embedding(names, width) if names else None
        for part in (self.token_table, self.place_table, self.head, self.time):
            if part is not None:
                initialise(part)
        if zero_init_head and self.head is not None:
            nn.init.zeros_(self.head.weight)

    # ------------------------------------------------------------------------------------------------------------ network

    def _time(self, t: Tensor) -> Tensor:
        """t float [B] in [0, 1] -> [B, D]."""
        weight = self.time[0].weight
        angles = 1000.0 * t[:, None].to(weight.dtype) * self._tables.on(t.device).rates.to(weight.dtype)
        waves = torch.cat((angles.cos(), angles.sin()), 1)
        return self.time(F.pad(waves, (0, weight.shape[1] - waves.shape[1])))

    def _hidden(self, codes: Tensor, condition: Condition, t: Tensor | None, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, K, N] with UNKNOWN cells -> [B, N, D]. noise: for dropout; None for none."""
        if codes.shape[1:] != (self.spec.levels, self.spec.positions):
            raise ValueError(
                f"these tokens have {codes.shape[1]} levels x {codes.shape[2]} positions; "
                f"this generator models {self.spec.levels} x {self.spec.positions}"
            )
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
        vector = given.vector
        if self.uses_time:
            if t is None:
                masked_cells = (codes == UNKNOWN).flatten(1).sum(1)
                t = masked_cells / (codes != ABSENT).flatten(1).sum(1).clamp(min=1)
            told = self._time(t.to(codes.device))
            vector = told if vector is None else vector + told
        return seeing_all(self.transformer, self.conditioner, tables, x, given, vector, self.dropout, rng)

    def _weights(self, level: int) -> Tensor:
        return (self.token_table if self.head is None else self.head).weight[self.vocab[level]]

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """As Masked.logits: [B, K, N, V], also at known cells. t: the masked share; None: as the tokens have it."""
        hidden = self._hidden(tokens.codes, condition, t, None)
        parts = [F.linear(hidden, self._weights(k)) for k in range(self.spec.levels)]
        if len(parts) == 1:
            return parts[0][:, None]  # no copy of what is the largest tensor of all
        return torch.stack([F.pad(part, (0, self.spec.vocab - part.shape[-1]), value=float("-inf")) for part in parts], 1)

    def forward(self, tokens: Tokens, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        return self.logits(tokens, condition or Condition(), t)

    # --------------------------------------------------------------------------------------------------------------- loss

    def _nll(self, codes: Tensor, hidden: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Nats [B, K, N] of the chosen cells (bool [B, K, N]), 0 elsewhere; and the same against the uniform law, for smoothing."""
        nats, uniform = [], []
        for k in range(self.spec.levels):
            logits = F.linear(hidden, self._weights(k))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            target = codes[:, k].masked_fill(~chosen[:, k], -100)
            nats.append(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target))
            if self.training and self.label_smoothing:
                # nll + logit of the target is the logsumexp.
                picked = logits.gather(2, codes[:, k].clamp(min=0)[..., None])[..., 0]
                uniform.append((nats[-1] + picked - logits.mean(2)) * chosen[:, k])
        nll = torch.stack(nats, 1)
        return nll, torch.stack(uniform, 1) if uniform else nll

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """maskgit, by_level: mean nats per masked cell that counts, nll None. elbo, any_order: the estimated bound in nats per present
        cell, and nll [B] of each row (unsmoothed). noise: rows' streams for the masks, and, in training mode, condition dropout and
        dropout. terms: nll (unsmoothed mean nats of these cells, each counted once), masked (their share), nll_level{k} where K > 1,
        bound (elbo, any_order)."""
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        hidden_cells = self.objective.choose(codes, rng)
        weight, chosen = hidden_cells.weight, hidden_cells.cells if hidden_cells.counted is None else hidden_cells.counted
        if self.training and self.condition_dropout:
            condition = condition.drop(rng.uniform() < self.condition_dropout)
        masked = codes.masked_fill(hidden_cells.cells, UNKNOWN)
        hidden = self._hidden(masked, condition, hidden_cells.time, rng if self.training else None)
        nll, uniform = self._nll(codes, hidden, chosen)
        number = chosen.sum()
        plain = nll.sum() / number.clamp(min=1)
        terms = {"nll": plain.detach(), "masked": number / cells.sum().clamp(min=1)}
        loss, count, rows = plain, number, None
        if weight is not None:
            count = cells.sum()
            rows = nll.flatten(1).sum(1) * weight.to(nll.dtype)
            loss = rows.sum() / count.clamp(min=1)
            terms["bound"] = loss.detach()
        if uniform is not nll:
            each = uniform if weight is None else uniform * weight.to(uniform.dtype)[:, None, None]
            loss = torch.lerp(loss, each.sum() / count.clamp(min=1), self.label_smoothing)
        if self.spec.levels > 1:
            means = nll.detach().sum((0, 2)) / chosen.sum((0, 2)).clamp(min=1)
            terms |= {f"nll_level{k}": means[k] for k in range(self.spec.levels)}
        return LossOutput(loss, count, None if rows is None else rows.detach(), terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """float [B]: an unbiased estimate, in nats, of an upper bound on -log p.

        The bound is that of drawing the C cells one by one in a uniformly random order: the mean over n = 1..C of (C / n) times the sum
        over n masked cells of -log p(cell | the others); a network that uses time is told n / C. One that uses time and was trained by
        the elbo is told the diffusion's own time m instead: the continuous-time bound, estimated at m uniform in (0, 1).
        `samples` values of n or m per row, spread evenly, each with a mask of its own; every one is a network call. Of a network trained
        by level: the same, level by level, coarse first, the deeper ones hidden; K calls for every value.
        """
        codes = tokens.codes
        if self.objective.name == "by_level":
            return self._bound_by_level(codes, condition, rng, samples)
        offset = rng.uniform()
        bound = _BY_TIME if self.uses_time and self.objective.name == "elbo" else _BY_COUNT
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            drawn = bound.at(codes, (offset + j / samples) % 1.0, rng)
            hidden = self._hidden(codes.masked_fill(drawn.cells, UNKNOWN), condition, drawn.time, None)
            total += self._nll(codes, hidden, drawn.cells)[0].flatten(1).sum(1).double() * drawn.weight
        return total / samples

    def _bound_by_level(self, codes: Tensor, condition: Condition, rng: RowRNG, samples: int) -> Tensor:
        offset, first = rng.uniform(), codes.new_zeros(len(codes))
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            u = (offset + j / samples) % 1.0
            for k in range(self.spec.levels):
                level = torch.full_like(first, k)
                drawn, cells = ByLevelObjective.at(codes, level, first, lambda c, u=u: torch.minimum((u * c).to(torch.int64) + 1, c), rng)
                hidden = self._hidden(codes.masked_fill(drawn.cells, UNKNOWN), condition, None, None)
                weight = cells.double() / drawn.counted.flatten(1).sum(1).clamp(min=1)
                total += self._nll(codes, hidden, drawn.counted)[0].flatten(1).sum(1).double() * weight
        return total / samples
