"""Any-subset autoregression: AS-ARM's model, one network for every law p(asked cells | visible cells), with an exact density
(Guo and Ermon, "Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding", arXiv 2504.20456).

Two streams of one transformer (nn/streams.py; XLNet's, arXiv 1906.08237): the content row of a cell holds its code, the query row asks for
it. The visible block attends fully to itself, since its own density is never asked for; the other cells are decoded in an order, by default
from left to right, which leaves 2^C laws to be learnt instead of C!. K levels are K cells of a position, the coarser one first.

Training: a random subset of a row's cells is visible, the others are asked, and the loss is their joint -log p in nats per cell. The asked
share rises from 0.15 to U(0.85, 0.99) over the first part of the run, as in the released code.

Deviations: RMSNorm, SwiGLU, rotary embedding and QK-norm; queries are rows of the same sequence, not a second stream of activations with
masks of its own (the same function); the warm-up follows the run's progress and not a number of steps; the asked number is rounded up, so
that a row of few cells is also asked for as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import AnyOrder, random_rank
from gentok.generators.masked import hide
from gentok.interfaces import Generator
from gentok.nn.cell_positions import axes_of, cell_coordinates, cell_names, prefix_coordinates
from gentok.nn.conditioning import Conditioner
from gentok.nn.constants import Constants
from gentok.nn.rope import rotation
from gentok.nn.transformer import Transformer, dropout, initialise
from gentok.nn.two_stream import two_stream_mask
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec

__all__ = ["AnyOrderTransformer"]


class AnyOrderTransformer(Generator, AnyOrder, id="generator/any_order"):
    """spec, condition_spec: what is modelled, given when the model is built.

    width D, depth, heads, hidden (feed-forward; default 8/3 D): the transformer.
    condition_by: prefix, cross or adaln; condition_dropout: share of training rows whose condition becomes null, for guidance.
    rope: auto (axial on a raster), line, axial. dropout: of embeddings and branches.
    asked: (low, high), the share of a row's cells that training asks for is uniform between them; warmup: the part of the run over which
    both rise from 0.15 (0: none). orders: left_to_right, or random: every order of the asked cells is trained.
    tie_embeddings: the head's weights are the input table's. zero_init_head: the first prediction is uniform.
    """

    START = 0.15
    """The asked share at the beginning of the warm-up."""

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        hidden: int | None = None,
        condition_by: str = "prefix",
        condition_dropout: float = 0.1,
        rope: str = "auto",
        qk_norm: bool = True,
        asked: Sequence[float] = (0.85, 0.99),
        warmup: float = 0.1,
        orders: str = "left_to_right",
        dropout: float = 0.0,
        tie_embeddings: bool = False,
        zero_init_head: bool = False,
    ):
        super().__init__()
        if len(asked) != 2 or not 0 < asked[0] <= asked[1] <= 1:
            raise ValueError(f"asked must be two shares (low, high) with 0 < low <= high <= 1; got {list(asked)}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a part of the run, from 0 to 1; got {warmup}")
        if orders not in ("left_to_right", "random"):
            raise ValueError(f"orders must be left_to_right or random; got {orders!r}")
        self.spec, self.condition_spec = spec, condition_spec or ConditionSpec()
        self.asked, self.warmup, self.orders = tuple(asked), warmup, orders
        self.condition_dropout, self.dropout = condition_dropout, dropout
        self.progress = 1.0  # of the run that trains it, which says so before every step
        by = condition_by if self.condition_spec.parts else "prefix"
        self.conditioner = Conditioner(self.condition_spec, width, condition_by)
        self.transformer = Transformer(
            width, depth, heads, hidden, causal=False, qk_norm=qk_norm, adaln=by == "adaln", cross=by == "cross", dropout=dropout
        )
        codes, levels = sum(spec.vocab_sizes), spec.levels
        self.vocab = [slice(sum(spec.vocab_sizes[:k]), sum(spec.vocab_sizes[: k + 1])) for k in range(levels)]
        self.token_table = nn.Embedding(codes + 2 * levels, width)  # codes, then per level "absent" and "asked"
        self.head = None if tie_embeddings else nn.Linear(width, codes, bias=False)
        with torch.device("cpu"):
            position, level = spec.exists().T.nonzero().T  # from left to right, the coarser level first
            places, axes = self.conditioner.places, axes_of(spec, rope)
            before = prefix_coordinates(torch.arange(places), axes, places)
            cells = cell_coordinates(spec, position, axes, places)
            cos, sin = rotation(torch.cat((before, cells)), head_width=self.transformer.head_width)
            named, names = cell_names(spec, level, position)
            starts = torch.tensor([part.start for part in self.vocab])
            place = torch.zeros(levels * spec.positions, dtype=torch.int64)  # of a cell among those that the spec has
            place[level * spec.positions + position] = torch.arange(len(level))
            self._tables = Constants(
                cos=cos, sin=sin, named=named, level=level, position=position, start=starts[level], absent=codes + level,
                query=codes + levels + level, place=place,
            )  # fmt: skip
            self._of_level = [(level == k).nonzero()[:, 0] for k in range(levels)]
            self._positions = [position[cells] for cells in self._of_level]
        self.place_table = nn.Embedding(names, width) if names else None
        for part in (self.token_table, self.place_table, self.head):
            if part is not None:
                initialise(part)
        if zero_init_head and self.head is not None:
            nn.init.zeros_(self.head.weight)

    # ------------------------------------------------------------------------------------------------------------ network

    def _hidden(
        self, codes: Tensor, condition: Condition, rank: Tensor, seen: Tensor | None, rng: RowRNG | None, asked: Tensor | None = None
    ) -> Tensor:
        """codes and rank int64 [B, K, N] -> [B, C, D], the query rows of the spec's cells, or of `asked` int64 [B, Q] of them alone, with
        no more content than these see. noise: for dropout; None for none."""
        if codes.shape[1:] != (self.spec.levels, self.spec.positions):
            raise ValueError(
                f"these tokens have {codes.shape[1]} levels x {codes.shape[2]} positions; "
                f"this generator models {self.spec.levels} x {self.spec.positions}"
            )
        batch, tables = codes.shape[0], self._tables.on(codes.device)
        ids, order = codes[:, tables.level, tables.position], rank[:, tables.level, tables.position]  # [B, C]
        shown, turn = ids != UNKNOWN, None
        held = wanted = torch.arange(ids.shape[1], device=codes.device)
        if asked is not None:
            wanted, turn = asked, order.gather(1, asked)
            shown = shown & (order < turn.amax(1, keepdim=True) if seen is None else order <= seen[:, None])
            held = shown.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : int(shown.sum(1).amax())]
            ids, order, shown = ids.gather(1, held), order.gather(1, held), shown.gather(1, held)
        content = self.token_table(torch.where(ids >= 0, ids + tables.start[held], tables.absent[held]))
        x = torch.cat((content, self.token_table(tables.query[wanted]).expand(batch, -1, -1)), 1)
        places, cells = self.conditioner.places, torch.cat((held, wanted), -1)
        if self.place_table is not None:
            x = x + self.place_table(tables.named[cells]).sum(-2)
        given = self.conditioner(condition, batch)
        cos, sin, prefix, prefix_mask = tables.cos[places + cells], tables.sin[places + cells], 0, None
        context, context_mask = given.tokens, given.mask
        if given.tokens is not None and self.conditioner.by == "prefix":
            prefix, prefix_mask, context, context_mask = given.tokens.shape[1], given.mask, None, None
            x = torch.cat((given.tokens.to(x.dtype), x), 1)
            before = tables.cos[given.place], tables.sin[given.place]
            cos, sin = (torch.cat((b.expand(*t.shape[:-4], *b.shape[-4:]), t), -4) for b, t in zip(before, (cos, sin)))
        mask = two_stream_mask(order, shown, seen, prefix, prefix_mask, turn)
        x = dropout(x, self.dropout, rng)
        x = self.transformer(x, (cos, sin), mask=mask, context=context, context_mask=context_mask, vector=given.vector, rng=rng)
        return x[:, prefix + held.shape[-1] :]

    def _weights(self, level: int) -> Tensor:
        return (self.token_table if self.head is None else self.head).weight[self.vocab[level]]

    def logits(self, tokens: Tokens, condition: Condition, rank: Tensor, seen: Tensor | None = None) -> Tensor:
        """As AnyOrder.logits."""
        hidden = self._hidden(tokens.codes, condition, rank, seen, None)
        out = hidden.new_zeros(*tokens.codes.shape, self.spec.vocab)  # a cell that the spec does not have may hold anything
        for k, size in enumerate(self.spec.vocab_sizes):
            part = F.linear(hidden[:, self._of_level[k]], self._weights(k))
            out[:, k, self._positions[k], :size] = part.to(out.dtype)
            out[:, k, :, size:] = float("-inf")
        return out

    def laws(self, tokens: Tokens, condition: Condition, rank: Tensor, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        """As AnyOrder.laws: only the asked queries and the content that they see go through the network."""
        tables = self._tables.on(cells.device)
        asked = tables.place[cells]
        hidden = self._hidden(tokens.codes, condition, rank, seen, None, asked)
        out = hidden.new_full((*cells.shape, self.spec.vocab), float("-inf"))
        for k, size in enumerate(self.spec.vocab_sizes):
            of_level = tables.level[asked] == k
            out[..., :size][of_level] = F.linear(hidden[of_level], self._weights(k)).to(out.dtype)
        return out

    def forward(self, tokens: Tokens, condition: Condition | None = None, rank: Tensor | None = None) -> Tensor:
        """logits; rank None: all present cells are asked, in the model's own order."""
        return self.logits(tokens, condition or Condition(), self.rank(tokens.present) if rank is None else rank)

    # --------------------------------------------------------------------------------------------------------- likelihood

    def _nll(self, codes: Tensor, hidden: Tensor, asked: Tensor) -> Tensor:
        """Nats [B, K, N] of the asked cells (bool [B, K, N]), 0 elsewhere."""
        out = hidden.new_zeros(codes.shape, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        for k in range(self.spec.levels):
            logits = F.linear(hidden[:, self._of_level[k]], self._weights(k)).to(out.dtype)
            target = codes[:, k, self._positions[k]].masked_fill(~asked[:, k, self._positions[k]], -100)
            out[:, k, self._positions[k]] = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        return out

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean nats per asked cell; ceil(share C) of each row's C present cells are asked. noise: rows' streams for the subsets and random
        orders, and, in training mode, condition dropout and dropout. nll None; terms: nll, asked (their share), nll_level{k} (K > 1)."""
        codes = tokens.codes
        cells = (codes >= 0).flatten(1).sum(1)
        warm = 1.0 if self.warmup == 0 else min(self.progress / self.warmup, 1.0)
        low, high = (self.START + warm * (end - self.START) for end in self.asked)
        share = low + (high - low) * rng.uniform()
        chosen = hide(codes, torch.ceil(share * cells).to(torch.int64).clamp(min=1), rng)
        rank = self.rank(chosen) if self.orders == "left_to_right" else random_rank(chosen, rng)
        if self.training and self.condition_dropout:
            condition = condition.drop(rng.uniform() < self.condition_dropout)
        nll = self._nll(codes, self._hidden(codes, condition, rank, None, rng if self.training else None), chosen)
        count = chosen.sum()
        loss = nll.sum() / count.clamp(min=1)
        terms = {"nll": loss.detach(), "asked": count / cells.sum().clamp(min=1)}
        if self.spec.levels > 1:
            means = nll.detach().sum((0, 2)) / chosen.sum((0, 2)).clamp(min=1)
            terms |= {f"nll_level{k}": means[k] for k in range(self.spec.levels)}
        return LossOutput(loss, count, None, terms)

    @torch.no_grad()
    def log_prob(self, tokens: Tokens, condition: Condition, asked: Tensor | None = None, rank: Tensor | None = None) -> Tensor:
        """float64 [B]: log p(asked cells | visible cells), exact, in one call.

        asked bool [B, K, N]: present cells whose joint density it is (default: all); the other present cells are visible, and UNKNOWN
        ones are neither. rank int64 [B, K, N]: the order of the asked cells, positive there and nowhere else, and without ties; default:
        the model's own. Raises ValueError where they do not fit.
        """
        asked = tokens.present if asked is None else asked
        if bool((asked & ~tokens.present).any()):
            b, k, n = (asked & ~tokens.present).nonzero()[0].tolist()
            raise ValueError(f"asked must be present cells; row {b} asks for level {k}, position {n}, which holds no code")
        rank = self.rank(asked) if rank is None else rank
        ordered = rank.flatten(1).sort(1).values
        if bool(((rank > 0) != asked).any()) or bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any()):
            raise ValueError("rank must be positive, and different, at the asked cells of a row, and 0 at its others")
        return -self._nll(tokens.codes, self._hidden(tokens.codes, condition, rank, None, None), asked).double().flatten(1).sum(1)

    @torch.no_grad()
    def nll_bound(
        self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1, asked: Tensor | None = None
    ) -> Tensor:
        """float64 [B]: nats of each row's present cells, or of the asked ones given the others. Here exact, the tightest of bounds: no
        draws, `samples` is not needed."""
        return -self.log_prob(tokens, condition, asked)
