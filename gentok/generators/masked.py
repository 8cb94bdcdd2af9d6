"""Masked token modelling: MaskGIT's model (Chang et al., arXiv 2202.04200) for K levels and every modality,
also as a masked diffusion.

A bidirectional transformer reads every position at once, with "masked" in the place of codes, and has one
head per level at every position. In training cells are masked, any cell independently of the others (K > 1:
also single levels of a position), and the loss is

    L = sum over masked cells i of  w * -log p(code_i | the visible cells)

w and the choice of cells being the objective's: MaskGIT's, the continuous-time bound of masked diffusion, or
its time-free form (generators/masked_losses.py).

Deviations from MaskGIT: pre-norm, RMSNorm, rotary embedding beside the learned places, QK-norm, a plain
linear head; a mask id per level. With objective = maskgit, `loss` is no likelihood (it weighs mask sizes by
gamma); `nll_bound` always is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.generators.base import Masked
from gentok.generators.bidirectional import BidirectionalTransformer
from gentok.generators.masked_losses import ByLevelObjective
from gentok.generators.masked_losses import objective as make_objective
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings
from gentok.rng import RowRNG
from gentok.settings import Fraction
from gentok.types import UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["MaskedTransformer"]

_BY_COUNT = make_objective("any_order", "linear", "independent")
_BY_TIME = make_objective("elbo", "linear", "independent")


class MaskedTransformer(BidirectionalTransformer, Masked, id="generator/masked"):
    """Predicts all masked cells from the visible ones at once.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        activation: of the feed-forward part, swiglu or gelu.
        objective: maskgit, elbo, any_order or by_level.
        schedule: of the masked share in training (flow/absorbing.py); any_order has none.
        times: independent, or stratified over a batch.
        uses_time: whether the network is given the masked share (by adaLN).
        label_smoothing: of the training loss, with any objective, from 0 to 1.
        tie_embeddings: whether the head's weights are the input table's.
        zero_init_head: whether the first prediction is uniform.
        transformer: as in TransformerSettings.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        activation: str = "swiglu",
        objective: str = "maskgit",
        schedule: str = "cosine",
        times: str = "independent",
        uses_time: bool = False,
        label_smoothing: Fraction = 0.0,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
        **transformer: TransformerOptions,
    ):
        made = make_objective(objective, schedule, times)
        super().__init__(
            spec, condition_spec, TransformerSettings(**transformer), activation=activation, uses_time=uses_time,
            tie_embeddings=tie_embeddings, zero_init_head=zero_init_head,
        )  # fmt: skip
        self.objective, self.label_smoothing = made, label_smoothing

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """As Masked.logits: [B, K, N, V], also at known cells. t: the masked share; None: as the tokens have
        it."""
        return self._logits(self._hidden(tokens.codes, condition, t, None))

    def forward(self, tokens: Tokens, condition: Condition | None = None, t: Tensor | None = None) -> Tensor:
        """As `logits`."""
        return self.logits(tokens, condition or Condition(), t)

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """The objective's loss.

        Args:
            tokens: codes int64 [B, K, N] without UNKNOWN cells.
            condition: B rows.
            rng: for the masks, and, in training mode, for condition dropout and dropout.

        Returns:
            maskgit, by_level: mean nats per masked cell that counts, without nats of rows. elbo, any_order:
            the estimated bound in nats per present cell, and the nats of each row (unsmoothed). Terms: nll
            (unsmoothed mean nats of the cells that count, each counted once), masked (their share),
            nll_level{k} where K > 1, bound (elbo, any_order).
        """
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        drawn = self.objective.choose(codes, rng)
        weight, chosen = drawn.weight, drawn.cells if drawn.counted is None else drawn.counted
        condition = self.drop_condition(condition, rng)
        hidden = self._hidden(codes.masked_fill(drawn.cells, UNKNOWN), condition, drawn.time, rng if self.training else None)
        smoothed = self.training and self.label_smoothing > 0
        nll, uniform = self._nll(codes, hidden, chosen, smoothed)
        number = chosen.sum()
        plain = nll.sum() / number.clamp(min=1)
        terms = {"nll": plain.detach(), "masked": number / cells.sum().clamp(min=1)}
        loss, count, rows = plain, number, None
        if weight is not None:
            count = cells.sum()
            rows = nll.flatten(1).sum(1) * weight.to(nll.dtype)
            loss = rows.sum() / count.clamp(min=1)
            terms["bound"] = loss.detach()
        if smoothed:
            each = uniform if weight is None else uniform * weight.to(uniform.dtype)[:, None, None]
            loss = torch.lerp(loss, each.sum() / count.clamp(min=1), self.label_smoothing)
        return LossOutput(loss, count, None if rows is None else rows.detach(), {**terms, **self._level_terms(nll, chosen)})

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """An unbiased estimate of an upper bound on -log p.

        The bound is that of drawing the C cells one by one in a uniformly random order: the mean over n =
        1..C of (C / n) times the sum over n masked cells of -log p(cell | the others); a network that uses
        time is given n / C. One that uses time and was trained by the elbo is given the diffusion's own time
        m instead: the continuous-time bound, estimated at m uniform in (0, 1). Of a network trained by level:
        the same, level by level, coarse first, the deeper ones masked.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the masks.
            samples: how many values of n or m per row, spread evenly, each with a mask of its own. Every one
                is a network call, or K of them where the network is trained by level.

        Returns:
            float64 [B], in nats.
        """
        if self.objective.name == "by_level":
            return self._bound_by_level(tokens.codes, condition, rng, samples)
        bound = _BY_TIME if self.uses_time and self.objective.name == "elbo" else _BY_COUNT
        return self._bound(bound, tokens.codes, condition, rng, samples)

    def _bound_by_level(self, codes: Tensor, condition: Condition, rng: RowRNG, samples: int) -> Tensor:
        offset, first = rng.uniform(), codes.new_zeros(len(codes))
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            u = (offset + j / samples) % 1.0
            for k in range(self.spec.levels):
                level = torch.full_like(first, k)
                drawn, cells = ByLevelObjective.at_level(
                    codes, level, first, lambda c, u=u: torch.minimum((u * c).to(torch.int64) + 1, c), rng
                )
                hidden = self._hidden(codes.masked_fill(drawn.cells, UNKNOWN), condition, None, None)
                weight = cells.double() / drawn.counted.flatten(1).sum(1).clamp(min=1)
                total += self._nll(codes, hidden, drawn.counted)[0].flatten(1).sum(1).double() * weight
        return total / samples
