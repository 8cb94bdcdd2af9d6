"""A mixture of training objectives for next-token prediction: random tokens, the next one, and all that follow
(TokenUnify: Chen et al., ICCV 2025, arXiv 2405.16847).

    L = w_random L_random + w_next L_next + w_all L_all           the weights sum to one and change over the run

    next        layout step i given the steps before it                                       the autoregressive model
    next_all    layout step j given the steps before i, for every i and a random j >= i
    random      a random part of the steps, each given all others, on both sides

One network has all three. It is told by name which cell a fed step is to predict, and queries stand where that cell
is, so that "all that follow" need no head of their own. For random steps, what is to be predicted is fed as a filler
and attention goes both ways. Every row of a batch draws its own objective by the weights, and counts as many cells as
it has, so that the expected loss is L at the cost of one objective. Sampling and likelihood are those of
the autoregressive model, from left to right.

Schedule: the largest weight, 0.73, moves from random to next at 30 % of the run, and on to next_all at 70 %; the
second is 0.18, the third 0.09.

Deviations: TokenUnify sums three losses of regressions, and has a resampler for what follows; one j is drawn for
every i; the order of the two smaller weights, the width of the transitions and the share of random tokens (uniform)
are ours. The last step of a layout is never fed, so random steps are not given it.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gentok.flow.random_cells import random_subset
from gentok.generators.autoregressive import Autoregressive
from gentok.nn.token_transformer import attend, full_precision, token_nll
from gentok.rng import RowRNG
from gentok.types import Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["OBJECTIVES", "MixedObjectives", "weights_at"]

OBJECTIVES = ("random", "next", "next_all")
_PARTS = ((0.73, 0.18, 0.09), (0.09, 0.73, 0.18), (0.09, 0.18, 0.73))
"""Weights of OBJECTIVES at the beginning, in the middle and at the end."""
_TURNS, _WIDTH = (0.3, 0.7), 0.02
"""When the largest weight moves on, as shares of the run; nine tenths of a transition take six times the width."""


def weights_at(progress: float) -> tuple[float, ...]:
    """Weights of OBJECTIVES at a share of the run that is over; they sum to one."""
    first, second = (1 / (1 + math.exp((turn - progress) / _WIDTH)) for turn in _TURNS)
    return tuple(a + first * (b - a) + second * (c - b) for a, b, c in zip(*_PARTS))


class MixedObjectives(Autoregressive, id="generator/mixed_objectives"):
    """The autoregressive model, trained by several objectives.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        objective: mixture, or one of OBJECTIVES alone.
        options: those of Autoregressive, and of TransformerSettings.

    Raises:
        ValueError: a setting is out of range, the tokens have a grammar, or labels are to be smoothed under another
            objective than next.
    """

    follows_grammar = False

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        objective: Literal["mixture", "random", "next", "next_all"] = "mixture",
        **options: Annotated[Any, Autoregressive],
    ):
        if spec.grammar:
            raise ValueError("these tokens have a grammar, which is known from left to right alone: use generator=autoregressive")
        super().__init__(spec, condition_spec, **options)
        if self.label_smoothing and objective != "next":
            raise ValueError(f"label_smoothing={self.label_smoothing} goes with objective=next alone; got objective={objective}")
        self.objective = objective

    @property
    def weights(self) -> tuple[float, ...]:
        """Of OBJECTIVES, now."""
        if self.objective == "mixture":
            return weights_at(self.progress)
        return tuple(float(name == self.objective) for name in OBJECTIVES)

    # ----------------------------------------------------------------------------------------------- training

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """In training mode the mean nats per present cell and end, under the objective of each row; else as
        Autoregressive.loss, the nats of whole items from left to right.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the objectives and what they leave to chance, condition dropout, dropout and token dropout.

        Returns:
            LossOutput without nats of rows; the term nll is the loss.
        """
        if not self.training or rng is None or self.objective == "next":
            return super().loss(tokens, condition, rng)
        self.check_shape(tokens.codes)
        condition = self.drop_condition(condition, rng)
        own, device = rng.fork("objectives"), tokens.codes.device
        kind = torch.bucketize(own.uniform(), torch.tensor(self.weights, dtype=torch.float64, device=device).cumsum(0)[:-1])
        target, there = self._step_targets(tokens.codes)  # [B, S, G]
        both_ways, steps = kind == OBJECTIVES.index("random"), self.layout.steps
        asked = self._random_steps(steps, own) | ~both_ways[:, None]  # bool [B, S]
        aim = torch.arange(steps, device=device).expand(len(kind), -1)
        ahead = (own.uniform(steps) * (steps - aim)).to(torch.int64)
        aim = torch.where((kind == OBJECTIVES.index("next_all"))[:, None], aim + ahead, aim)
        hide = torch.cat((torch.zeros_like(both_ways)[:, None], (asked & both_ways[:, None])[:, :-1]), 1)
        hidden = self._aimed_hidden(tokens.codes, condition, aim, both_ways, hide, rng)
        nats = self._aimed_nats(hidden, aim, target, there & asked[..., None])
        # A row counts by its cells, however many of them it was asked for.
        cells, count = there.sum((1, 2)), there.sum()
        share = cells.to(nats.dtype) / self._at(there & asked[..., None], aim).sum((1, 2)).clamp(min=1)
        loss = (nats.sum((1, 2)) * share).sum() / count.clamp(min=1)
        return LossOutput(loss, count, None, {"nll": loss.detach()})

    @staticmethod
    def _random_steps(steps: int, rng: RowRNG) -> Tensor:
        """bool [B, S]: a random part of the steps, of a uniform share, one at least."""
        every = torch.ones(rng.batch, 1, steps, dtype=torch.bool, device=rng.device)
        return random_subset(every, (rng.uniform() * steps).to(torch.int64) + 1, rng)[:, 0]

    @staticmethod
    def _at(slots: Tensor, aim: Tensor) -> Tensor:
        """slots [B, S, G] of the steps aim int64 [B, S]."""
        return slots.gather(1, aim[..., None].expand(-1, -1, slots.shape[2]))

    def _step_targets(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """codes int64 [B, K, N] -> ids int64 [B, S, G], the end being the last one, and bool [B, S, G], where an id is."""
        pairs = [self._targets(codes, k) for k in range(self.spec.levels)]
        there = torch.stack([here for _, here in pairs], 1)
        ids = torch.where(there & (codes < 0), self.spec.vocab, codes)
        return self.layout.flatten(ids), self.layout.flatten(there.to(torch.int64)) > 0

    def _aimed_hidden(
        self, codes: Tensor, condition: Condition, aim: Tensor, both_ways: Tensor, hide: Tensor, rng: RowRNG | None
    ) -> Tensor:
        """The states [B, S, D] from which fed steps predict the layout steps aim int64 [B, S]; hide bool [B, S]: fed as
        a filler; both_ways bool [B]: whether attention is."""
        ids, tables, places = self.feed(codes), self._tables.on(codes.device), self.conditioner.places
        dropped = self._hide(ids, rng)
        named = SimpleNamespace(offset=tables.offset, absent=tables.absent, named=tables.named[aim])
        x = self._embed(ids, slice(None), hide if dropped is None else hide | dropped, tables=named)
        given, (batch, steps) = self.conditioner(condition, len(ids)), aim.shape
        prefix = 0 if given.prefix is None else given.prefix.shape[1]
        own = torch.arange(steps, device=codes.device).expand(batch, -1)
        rotations = tuple(
            torch.cat((t[:places], torch.cat((t[places + aim][..., :1, :, :], t[places + own][..., 1:, :, :]), -3).flatten(0, 1)))
            for t in (tables.cos, tables.sin)
        )
        length = torch.arange(prefix + steps, device=codes.device)
        mask = (length <= length[:, None]) | (both_ways[:, None, None] & (length >= prefix)[:, None])
        if given.prefix is not None and given.mask is not None:
            mask = mask & torch.cat((given.mask, torch.ones_like(hide)), 1)[:, None]
        rows = places + torch.arange(batch * steps, device=codes.device).view(batch, steps)
        return attend(self.trunk, x, given, rotations, rows, mask=mask[:, None], rate=self.dropout, rng=rng)

    def _aimed_nats(self, hidden: Tensor, aim: Tensor, target: Tensor, there: Tensor) -> Tensor:
        """Nats [B, S, G] of the steps that are aimed at, 0 where nothing is there; target and there [B, S, G], of all steps."""
        level = self._tables.on(hidden.device).level[aim]
        logits = full_precision(self._logits(hidden, level)).flatten(1, 2)
        return token_nll(logits, self._at(target, aim).flatten(1), self._at(there, aim).flatten(1)).view(level.shape)
