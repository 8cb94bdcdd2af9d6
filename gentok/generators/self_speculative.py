"""Self-speculative masked model: a bidirectional trunk that drafts all masked cells, and a few causal blocks
on top that verify the drafts (Campbell et al., "Self-Speculative Masked Diffusions", arXiv 2510.03929).

    draft    q(cell | visible cells)                                     one pass of the trunk, for all masked
             cells
    verify   p_r(cell of rank r | visible cells, cells of rank < r)      one pass of the blocks on top; p_1 =
             q

The trunk is that of the masked generator (generators/masked.py). The blocks on top read its states and, in
two streams (nn/two_stream.py), the ids of the cells that come earlier in an order, and correct its logits. So
one pass of the trunk and one of the cheap blocks give the joint distribution of all masked cells, which a
masked model takes for independent.

Training: cells are masked as the masked generator masks them, in a random order; the loss is the trunk's
cross-entropy of all masked cells plus that of the corrected distributions.

Deviations: two streams, where the paper shifts one stream by a place in the order; the correction is added to
the trunk's logits and begins as zero; the blocks on top see the condition through the trunk's states alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.flow.random_cells import random_rank
from gentok.generators.base import Masked, SelfSpeculative
from gentok.generators.bidirectional import BidirectionalTransformer
from gentok.generators.masked_losses import objective
from gentok.nn.cell_positions import rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings, full_precision, initialise_parts
from gentok.nn.transformer import Transformer
from gentok.nn.two_stream import Cells, two_stream_mask
from gentok.rng import RowRNG
from gentok.settings import Count
from gentok.types import UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["SelfSpeculativeTransformer"]

_BY_COUNT = objective("any_order", "linear", "independent")


class SelfSpeculativeTransformer(BidirectionalTransformer, Masked, SelfSpeculative, id="generator/self_speculative"):
    """A masked model, whose samplers it takes too, with causal blocks on top.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        depth: blocks of the trunk.
        verify_depth: causal blocks on top.
        schedule: of the masked share in training (flow/absorbing.py).
        zero_init_head: whether the first prediction is uniform.
        transformer: as in TransformerSettings.

    Raises:
        ValueError: verify_depth < 1, or there is no such schedule.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        depth: Count = 5,
        verify_depth: Count = 1,
        schedule: str = "cosine",
        zero_init_head: bool = False,
        **transformer: TransformerOptions,
    ):
        own, settings = objective("maskgit", schedule, "independent"), TransformerSettings(depth=depth, **transformer)
        super().__init__(spec, condition_spec, settings, zero_init_head=zero_init_head)
        self.objective, width, codes = own, settings.width, sum(spec.vocab_sizes)
        self.verifier = Transformer(
            width, verify_depth, settings.heads, settings.hidden, causal=False, qk_norm=settings.qk_norm, dropout=settings.dropout
        )
        self.draft_table = nn.Embedding(codes + 2 * spec.levels, width)  # codes, then per level "absent" and "asked"
        self.take_state = nn.Linear(width, width, bias=False)
        self.correction = nn.Linear(width, codes, bias=False)
        initialise_parts(self.draft_table, self.take_state, self.correction)
        nn.init.zeros_(self.correction.weight)
        self._cells = Cells(spec)
        with torch.device("cpu"):
            twice = torch.cat((self._cells.position, self._cells.position))
            cos, sin = rotation_tables(spec, settings.rope, 0, self.verifier.head_width, twice)
            self._rotations = Constants(cos=cos, sin=sin)

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        """As Masked.logits: the drafts. t is not needed."""
        return self.draft(tokens, condition)[0]

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """As `logits`."""
        return self.logits(tokens, condition or Condition())

    def draft(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Tensor]:
        """As SelfSpeculative.draft; the state is the trunk's, float [B, N, D]."""
        state = self._hidden(tokens.codes, condition, None, None)
        return self._logits(state), state

    def verify(self, state: Tensor, tokens: Tokens, rank: Tensor) -> Tensor:
        """As SelfSpeculative.verify."""
        return self._verified(state, tokens.codes, rank, None)

    def _verified(self, state: Tensor, codes: Tensor, rank: Tensor, rng: RowRNG | None) -> Tensor:
        """As `verify`; codes int64 [B, K, N]. rng: for dropout; None: none."""
        cells, rotations = self._cells.tables.on(codes.device), self._rotations.on(codes.device)
        ids, order = self._cells.take(codes), self._cells.take(rank)  # [B, C]
        own = self.take_state(state)[:, cells.position]
        content = own + self.draft_table(torch.where(ids >= 0, ids + cells.start, cells.absent)).to(own.dtype)
        x = torch.cat((content, own + self.draft_table(cells.asked).to(own.dtype)), 1)
        mask = two_stream_mask(order, ids != UNKNOWN)
        queries = self.verifier(x, (rotations.cos, rotations.sin), mask=mask, rng=rng)[:, ids.shape[1] :]
        drafted = self._logits(state)
        change = torch.zeros_like(drafted)
        for k, (positions, part) in enumerate(self._cells.by_level(queries, lambda k: self.correction.weight[self.vocab[k]])):
            change[:, k, positions, : part.shape[2]] = part.to(change.dtype)
        return drafted + change * (rank > 1)[..., None]

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean nats per masked cell of the drafts, plus the same of the verified distributions.

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the masked cells and their order, and, in training mode, for condition dropout and
                dropout.

        Returns:
            LossOutput without nats of rows; terms: draft, verify, masked (the share of cells).
        """
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        chosen = self.objective.choose(codes, rng).cells
        rank = random_rank(chosen, rng)
        condition = self.drop_condition(condition, rng)
        own = rng if self.training else None
        state = self._hidden(codes.masked_fill(chosen, UNKNOWN), condition, None, own)
        target, count = codes.masked_fill(~chosen, -100), chosen.sum()
        draft, verify = (
            F.cross_entropy(full_precision(logits).flatten(0, 2), target.flatten(), reduction="sum") / count.clamp(min=1)
            for logits in (self._logits(state), self._verified(state, codes, rank, own))
        )
        terms = {"draft": draft.detach(), "verify": verify.detach(), "masked": count / cells.sum().clamp(min=1)}
        return LossOutput(draft + verify, count, None, terms)

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, samples: int = 1) -> Tensor:
        """As MaskedTransformer.nll_bound, of the trunk: of cells drawn one by one, each after a pass of the
        trunk."""
        return self._bound(_BY_COUNT, tokens.codes, condition, rng, samples)

    @torch.no_grad()
    def window_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, window: int, samples: int = 1) -> Tensor:
        """An unbiased estimate of an upper bound on -log p under self-speculative decoding by windows.

        The bound is the mean over orders of the sum over windows of -log q(first cell) - log p(the others).

        Args:
            tokens: codes int64 [B, K, N].
            condition: B rows.
            rng: for the orders and windows.
            window: how many cells are drafted at a time.
            samples: how many random orders, each with one of its windows; these are spread evenly over the
                windows.

        Returns:
            float64 [B], in nats.
        """
        codes, offset = tokens.codes, rng.uniform()
        present = codes >= 0
        windows = -(-present.sum((1, 2)) // window)
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for j in range(samples):
            chosen = ((offset + j / samples) % 1.0 * windows).long().clamp(max=(windows - 1).clamp(min=0))
            rank = ((random_rank(present, rng) - (chosen * window)[:, None, None]) * present).clamp(min=0)
            state = self._hidden(codes.masked_fill(rank > 0, UNKNOWN), condition, None, None)
            log_p = self._verified(state, codes, rank, None).double().log_softmax(-1)
            mine = (rank > 0) & (rank <= window)
            nats = -log_p.gather(3, codes.clamp(min=0)[..., None])[..., 0].masked_fill(~mine, 0.0)
            total += nats.sum((1, 2)) * windows
        return total / samples
