"""Self-speculative masked model: a bidirectional trunk that drafts all hidden cells, and a few causal blocks on top that verify the drafts
(Campbell et al., "Self-Speculative Masked Diffusions", arXiv 2510.03929).

The trunk is the masked generator (generators/masked.py): one pass gives the law q of every hidden cell given the visible ones. The blocks
on top read its states and, in two streams (nn/streams.py), the ids of the cells that come earlier in an order, and correct its logits:
p_r = p(cell of rank r | visible cells, cells of rank < r). The cell of rank 1 has p = q by construction. So one pass of the trunk and one
of the cheap blocks hold the joint law of all hidden cells, which a masked model takes for independent.

Training: cells are hidden as the masked generator hides them, in a random order; the loss is the trunk's cross-entropy of all hidden cells
plus that of the corrected laws.

Deviations: two streams, where the paper shifts one stream by a place in the order; the correction is added to the trunk's logits and begins
as zero; the blocks on top see the condition through the trunk's states alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import SelfSpeculative, random_rank
from gentok.generators.masked import SCHEDULES, MaskedTransformer, hide
from gentok.nn.cell_positions import axes_of, cell_coordinates
from gentok.nn.constants import Constants
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer, initialise
from gentok.nn.two_stream import two_stream_mask
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["SelfSpeculativeTransformer"]


class SelfSpeculativeTransformer(MaskedTransformer, SelfSpeculative, id="generator/self_speculative"):
    """As MaskedTransformer, whose samplers it takes too; verify_depth: causal blocks on top of the trunk's `depth`.

    `nll_bound` is the trunk's: of cells drawn one by one, each after a pass of the trunk; `window_bound` that of self-speculative decoding.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 5,
        verify_depth: int = 1,
        heads: int = 4,
        hidden: int | None = None,
        condition_by: str = "prefix",
        condition_dropout: float = 0.1,
        rope: str = "auto",
        qk_norm: bool = True,
        schedule: str = "cosine",
        dropout: float = 0.0,
        zero_init_head: bool = False,
    ):
        super().__init__(
            spec, condition_spec, width=width, depth=depth, heads=heads, hidden=hidden, condition_by=condition_by,
            condition_dropout=condition_dropout, rope=rope, qk_norm=qk_norm, schedule=schedule, dropout=dropout,
            zero_init_head=zero_init_head,
        )  # fmt: skip
        if verify_depth < 1:
            raise ValueError(f"verify_depth must be >= 1; got {verify_depth}")
        self.hidden_share = schedule
        self.verifier = Transformer(width, verify_depth, heads, hidden, causal=False, qk_norm=qk_norm, dropout=dropout)
        codes, levels = sum(spec.vocab_sizes), spec.levels
        self.draft_table = nn.Embedding(codes + 2 * levels, width)  # codes, then per level "absent" and "asked"
        self.take_state = nn.Linear(width, width, bias=False)
        self.correction = nn.Linear(width, codes, bias=False)
        for part in (self.draft_table, self.take_state, self.correction):
            initialise(part)
        nn.init.zeros_(self.correction.weight)
        with torch.device("cpu"):
            position, level = spec.exists().T.nonzero().T
            starts = torch.tensor([part.start for part in self.vocab])
            cells = cell_coordinates(spec, position, axes_of(spec, rope), 0)
            cos, sin = rotation(torch.cat((cells, cells)), head_width=self.verifier.head_width)
            self._cells = Constants(
                cos=cos, sin=sin, level=level, position=position, start=starts[level], absent=codes + level, query=codes + levels + level
            )
            self._of_level = [(level == k).nonzero()[:, 0] for k in range(levels)]
            self._positions = [position[cells] for cells in self._of_level]

    def draft(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, Tensor]:
        """As SelfSpeculative.draft; the state is the trunk's, float [B, N, D]."""
        state = self._hidden(tokens.codes, condition, None, None)
        return self._drafted(state), state

    def verify(self, state: Tensor, tokens: Tokens, rank: Tensor) -> Tensor:
        """As SelfSpeculative.verify."""
        return self._verified(state, tokens.codes, rank, None)

    def _drafted(self, state: Tensor) -> Tensor:
        parts = [F.linear(state, self._weights(k)) for k in range(self.spec.levels)]
        return torch.stack([F.pad(part, (0, self.spec.vocab - part.shape[-1]), value=float("-inf")) for part in parts], 1)

    def _verified(self, state: Tensor, codes: Tensor, rank: Tensor, rng: RowRNG | None) -> Tensor:
        tables = self._cells.on(codes.device)
        ids, order = codes[:, tables.level, tables.position], rank[:, tables.level, tables.position]  # [B, C]
        own = self.take_state(state)[:, tables.position]
        content = own + self.draft_table(torch.where(ids >= 0, ids + tables.start, tables.absent)).to(own.dtype)
        x = torch.cat((content, own + self.draft_table(tables.query).to(own.dtype)), 1)
        mask = two_stream_mask(order, ids != UNKNOWN)
        queries = self.verifier(x, (tables.cos, tables.sin), mask=mask, rng=rng)[:, ids.shape[1] :]
        drafted = self._drafted(state)
        change = torch.zeros_like(drafted)
        for k, size in enumerate(self.spec.vocab_sizes):
            part = F.linear(queries[:, self._of_level[k]], self.correction.weight[self.vocab[k]])
            change[:, k, self._positions[k], :size] = part.to(change.dtype)
        return drafted + change * (rank > 1)[..., None]

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean nats per hidden cell of the trunk's laws, plus the same of the verified ones. noise: rows' streams for the hidden cells and
        their order, and, in training mode, condition dropout and dropout. nll None; terms: draft, verify, masked (their share)."""
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        share = SCHEDULES[self.hidden_share](rng.uniform())
        chosen = hide(codes, torch.ceil(share * cells).to(torch.int64).clamp(min=1), rng)
        rank = random_rank(chosen, rng)
        if self.training and self.condition_dropout:
            condition = condition.drop(rng.uniform() < self.condition_dropout)
        own = rng if self.training else None
        state = self._hidden(codes.masked_fill(chosen, UNKNOWN), condition, None, own)
        count = chosen.sum()
        nats = []
        for logits in (self._drafted(state), self._verified(state, codes, rank, own)):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            target = codes.masked_fill(~chosen, -100)
            nats.append(F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="sum", ignore_index=-100) / count.clamp(min=1))
        terms = {"draft": nats[0].detach(), "verify": nats[1].detach(), "masked": count / cells.sum().clamp(min=1)}
        return LossOutput(nats[0] + nats[1], count, None, terms)

    @torch.no_grad()
    def window_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG, window: int, samples: int = 1) -> Tensor:
        """float [B]: an unbiased estimate, in nats, of an upper bound on -log p under the law of self-speculative decoding by windows:
        the mean over orders of the sum over windows of -log q(first cell) - log p(the others). Each of `samples`, spread evenly over the
        windows, takes a random order and one of its windows."""
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
