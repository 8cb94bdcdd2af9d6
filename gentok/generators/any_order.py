"""Any-subset autoregression: AS-ARM's model, one network for every p(asked cells | visible cells), with an
exact density (Guo and Ermon, "Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and
Speculative Decoding", arXiv 2504.20456).

    log p(asked | visible) = sum over ranks r of  log p(cell of rank r | visible cells, cells of rank < r)

Two streams of one transformer (nn/two_stream.py; XLNet's, arXiv 1906.08237): the content row of a cell holds
its code, the query row asks for it. The visible block attends fully to itself, since its own density is never
asked for; the other cells are decoded in an order, by default from left to right, which leaves 2^C
distributions to be learnt instead of C!. K levels are K cells of a position, the coarser one first.

Training: a random subset of a row's cells is visible, the others are asked, and the loss is their joint -log
p in nats per cell. The asked share rises from 0.15 to U(0.85, 0.99) over the first part of the run, as in the
released code.

Deviations: RMSNorm, SwiGLU, rotary embedding and QK-norm; queries are rows of the same sequence, not a second
stream of activations with masks of its own (the same function); the warm-up follows the run's progress and
not a number of steps; the asked number is rounded up, so that a row of few cells is also asked for as a
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.flow.random_cells import random_rank, random_subset
from gentok.generators.base import AnyOrder
from gentok.generators.bidirectional import BidirectionalTransformer
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings, attend, full_precision, token_nll
from gentok.nn.two_stream import Cells, two_stream_mask
from gentok.rng import RowRNG
from gentok.settings import Fraction
from gentok.types import UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["AnyOrderTransformer"]


class AnyOrderTransformer(BidirectionalTransformer, AnyOrder, id="generator/any_order"):
    """A content row and a query row for every cell.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        asked: (low, high), the share of a row's cells that training asks for is uniform between them.
        warmup: the part of the run over which both rise from 0.15; 0: none.
        orders: left_to_right, or random: every order of the asked cells is trained.
        tie_embeddings: whether the head's weights are the input table's.
        zero_init_head: whether the first prediction is uniform.
        transformer: as in TransformerSettings.

    Raises:
        ValueError: a setting is out of range.
    """

    START = 0.15
    """The asked share at the beginning of the warm-up."""

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        asked: Sequence[float] = (0.85, 0.99),
        warmup: Fraction = 0.1,
        orders: Literal["left_to_right", "random"] = "left_to_right",
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
        **transformer: TransformerOptions,
    ):
        if len(asked) != 2 or not 0 < asked[0] <= asked[1] <= 1:
            raise ValueError(f"asked must be two shares (low, high) with 0 < low <= high <= 1; got {list(asked)}")
        cells, settings = Cells(spec), TransformerSettings(**transformer)
        super().__init__(
            spec, condition_spec, settings, cells.position, cells.level, tie_embeddings=tie_embeddings, zero_init_head=zero_init_head
        )
        self._cells = cells
        self.asked, self.warmup, self.orders = tuple(asked), warmup, orders

    # ------------------------------------------------------------------------------------------------ network

    def _queries(
        self, codes: Tensor, condition: Condition, rank: Tensor, seen: Tensor | None, rng: RowRNG | None, asked: Tensor | None = None
    ) -> Tensor:
        """The query rows of the spec's cells, [B, C, D]; or of some of them alone, with no more content than
        these see, [B, Q, D].

        codes and rank int64 [B, K, N]; asked int64 [B, Q]. rng: for dropout; None: none.
        """
        self.check_shape(codes)
        batch, tables, cells = codes.shape[0], self._tables.on(codes.device), self._cells.tables.on(codes.device)
        ids, order = self._cells.take(codes), self._cells.take(rank)  # [B, C]
        visible, query_rank = ids != UNKNOWN, None
        held = wanted = torch.arange(ids.shape[1], device=codes.device)
        if asked is not None:
            wanted, query_rank = asked, order.gather(1, asked)
            visible = visible & (order < query_rank.amax(1, keepdim=True) if seen is None else order <= seen[:, None])
            held = visible.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : int(visible.sum(1).amax())]
            ids, order, visible = ids.gather(1, held), order.gather(1, held), visible.gather(1, held)
        content = self.token_table(torch.where(ids >= 0, ids + cells.start[held], cells.absent[held]))
        x = torch.cat((content, self.token_table(cells.asked[wanted]).expand(batch, -1, -1)), 1)
        both = torch.cat((held, wanted), -1)
        if self.place_table is not None:
            x = x + self.place_table(tables.named[both]).sum(-2)
        given = self.conditioner(condition, batch)
        prefix, prefix_mask = (0, None) if given.prefix is None else (given.prefix.shape[1], given.mask)
        mask = two_stream_mask(order, visible, seen, prefix, prefix_mask, query_rank)
        rotations = (tables.cos, tables.sin)
        x = attend(self.transformer, x, given, rotations, self.conditioner.places + both, mask=mask, rate=self.dropout, rng=rng)
        return x[:, held.shape[-1] :]

    def logits(self, tokens: Tokens, condition: Condition, rank: Tensor, seen: Tensor | None = None) -> Tensor:
        """As AnyOrder.logits."""
        hidden = self._queries(tokens.codes, condition, rank, seen, None)
        out = hidden.new_zeros(*tokens.codes.shape, self.spec.vocab)  # a cell that the spec does not have may hold anything
        for k, (positions, part) in enumerate(self._cells.by_level(hidden, self._weights)):
            out[:, k, positions, : part.shape[2]] = part.to(out.dtype)
            out[:, k, :, part.shape[2] :] = float("-inf")
        return out

    def conditionals(self, tokens: Tokens, condition: Condition, rank: Tensor, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        """As AnyOrder.conditionals: only the asked queries and the content that they see go through the
        network."""
        tables = self._cells.tables.on(cells.device)
        asked = tables.index[cells]
        hidden = self._queries(tokens.codes, condition, rank, seen, None, asked)
        out = hidden.new_full((*cells.shape, self.spec.vocab), float("-inf"))
        for k, size in enumerate(self.spec.vocab_sizes):
            of_level = tables.level[asked] == k
            out[..., :size][of_level] = F.linear(hidden[of_level], self._weights(k)).to(out.dtype)
        return out

    def forward(self, tokens: Tokens, condition: Condition | None = None, rank: Tensor | None = None) -> Tensor:
        """As `logits`; rank None: all present cells are asked, in the model's own order."""
        return self.logits(tokens, condition or Condition(), self.rank(tokens.present) if rank is None else rank)

    # --------------------------------------------------------------------------------------------- likelihood

    def _asked_nats(self, codes: Tensor, condition: Condition, rank: Tensor, rng: RowRNG | None = None) -> Tensor:
        """Nats [B, K, N] of the cells of positive rank, 0 elsewhere. rng: for dropout; None: none."""
        hidden = self._queries(codes, condition, rank, None, rng)
        out = full_precision(hidden.new_zeros(codes.shape))
        for k, (positions, logits) in enumerate(self._cells.by_level(hidden, self._weights)):
            out[:, k, positions] = token_nll(logits.to(out.dtype), codes[:, k, positions], rank[:, k, positions] > 0)
        return out

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean nats per asked cell; ceil(share C) of each row's C present cells are asked.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the subsets and random orders, and, in training mode, for condition dropout and dropout.

        Returns:
            LossOutput without nats of rows; terms: nll, asked (the share of cells), nll_level{k} where K > 1.
        """
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        warm = 1.0 if self.warmup == 0 else min(self.progress / self.warmup, 1.0)
        low, high = (self.START + warm * (end - self.START) for end in self.asked)
        share = low + (high - low) * rng.uniform()
        chosen = random_subset(codes >= 0, torch.ceil(share * cells).to(torch.int64).clamp(min=1), rng)
        rank = self.rank(chosen) if self.orders == "left_to_right" else random_rank(chosen, rng)
        condition = self.drop_condition(condition, rng)
        nll = self._asked_nats(codes, condition, rank, rng if self.training else None)
        count = chosen.sum()
        loss = nll.sum() / count.clamp(min=1)
        terms = {"nll": loss.detach(), "asked": count / cells.sum().clamp(min=1)}
        return LossOutput(loss, count, None, {**terms, **self._level_terms(nll, chosen)})

    @torch.no_grad()
    def log_prob(self, tokens: Tokens, condition: Condition, asked: Tensor | None = None, rank: Tensor | None = None) -> Tensor:
        """log p(asked cells | visible cells), exact, in one call.

        Args:
            tokens: codes int64 [B, K, N]; UNKNOWN cells are neither asked nor visible.
            condition: B rows.
            asked: bool [B, K, N], present cells whose joint density it is; the other present cells are
                visible. None: all are asked.
            rank: int64 [B, K, N], the order of the asked cells, positive there and nowhere else, without
                ties; None: the model's own.

        Returns:
            float64 [B].

        Raises:
            ValueError: asked or rank do not fit.
        """
        asked = tokens.present if asked is None else asked
        if bool((asked & ~tokens.present).any()):
            b, k, n = (asked & ~tokens.present).nonzero()[0].tolist()
            raise ValueError(f"asked must be present cells; row {b} asks for level {k}, position {n}, which holds no code")
        rank = self.rank(asked) if rank is None else rank
        ordered = rank.flatten(1).sort(1).values
        if bool(((rank > 0) != asked).any()) or bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any()):
            raise ValueError("rank must be positive, and different, at the asked cells of a row, and 0 at its others")
        return -self._asked_nats(tokens.codes, condition, rank).double().flatten(1).sum(1)

    @torch.no_grad()
    def nll_bound(
        self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1, asked: Tensor | None = None
    ) -> Tensor:
        """float64 [B]: the exact nats of each row's present cells, or of the asked ones given the others;
        nothing is drawn, `rng` and `samples` are not needed."""
        return -self.log_prob(tokens, condition, asked)
