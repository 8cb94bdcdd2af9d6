"""Next-scale prediction: VAR's transformer (Tian et al., arXiv 2404.02905; code read for facts:
FoundationVision/VAR).

The tokens of a pyramid codebook are predicted scale by scale, all cells of a scale at once:

    f_s      = sum of the code vectors of the scales before s, as the codebook accumulates them, at the size of scale s
    x_s      = read(f_s) + place + level;    the first scale, where f is zero, adds the condition's vector where there is one
    h        = transformer(x_0, ..., x_S-1), in which a scale sees itself and those before it
    p(codes) = product over scales s and their cells n of  softmax(head(h_s,n))[code_s,n]

The cells of a scale are independent of one another given the scales before it, in this model's own distribution:
drawing them together is exact, and so is the likelihood. All scales are trained in one pass.

VAR: condition_by=adaln (its class modulates every block, and the norm before the head), qk_norm=cosine, a linear
`read`, and a codebook that carries sums at full size. TokenFlow (Qu et al., arXiv 2412.03069): condition_by=prefix,
a `read` of two layers (mlp_read), and a codebook that carries them from scale to scale.

Deviations from VAR: RMSNorm instead of LayerNorm (norm=layer); gelu is not approximated (activation=gelu_tanh); no
biases in the blocks but those of their modulation (bias=true); no stochastic depth (VAR: 0.1 depth / 24); weights
begin at 0.02 for any width, and the head at zero (VAR: a fiftieth of the others); the start of the first scale has no
table of its own beside its place's. The released networks are generator=var.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.base import NextScale
from gentok.interfaces import Codebook, Generator
from gentok.nn.conditioning import Conditioned
from gentok.nn.constants import Constants
from gentok.nn.frozen import Frozen
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear
from gentok.nn.token_transformer import TransformerOptions, TransformerSettings, full_precision, initialise_parts, token_nll
from gentok.nn.transformer import dropout
from gentok.precision import no_autocast
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat
from gentok.types import Condition, ConditionSpec, LossOutput, Pyramid, Tokens, TokenSpec

__all__ = ["NextScaleTransformer"]


@dataclass
class _Cache:
    """Keys and values of the scales that were fed, and the condition's vector float [B, D], if there is one."""

    kv: KVCache
    vector: Tensor | None


class NextScaleTransformer(Generator, NextScale, id="generator/next_scale"):
    """A transformer over the scales of a pyramid.

    Args:
        spec: the tokens.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: whose sums are read; a frozen copy is kept, outside of the state dict.
        activation: of the feed-forward part, gelu, gelu_tanh or swiglu.
        norm: rms or layer, of the blocks and before the head.
        bias: whether the linear layers of the blocks and the head have one.
        qk_norm: cosine, or as in TransformerSettings.
        gate_init: with condition_by=adaln, how much smaller the weights of the branches' gates begin than others.
        mlp_read: whether the sums go through two layers instead of one.
        zero_init_head: whether the first prediction is uniform.
        transformer: as in TransformerSettings; cells have learned places and no rotation, so there is no `rope`.

    Raises:
        ValueError: the tokens are no pyramid's, or rope is set.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        activation: str = "gelu",
        norm: str = "rms",
        bias: bool = False,
        qk_norm: bool | Literal["cosine", "layer"] = "cosine",
        gate_init: NonNegativeFloat = 1e-3,
        mlp_read: bool = False,
        zero_init_head: bool = False,
        **transformer: TransformerOptions,
    ):
        super().__init__()
        if codebook is None or not isinstance(spec.grid, Pyramid):
            kind = f"{type(codebook).__name__} on a {type(spec.grid).__name__.lower()}" if codebook is not None else "no codebook"
            raise ValueError(
                f"next_scale models the scales of a pyramid; this tokenizer has {kind}: use generator=autoregressive or masked, or a "
                "tokenizer with codebook=pyramid"
            )
        settings = TransformerSettings(qk_norm=qk_norm, **transformer)
        if settings.rope != "auto":
            raise ValueError("next_scale has learned places of its cells and no rotation: leave generator.rope out")
        self.spec, self.condition_spec = spec, condition_spec or ConditionSpec()
        self.condition_dropout, self.dropout, width = settings.condition_dropout, settings.dropout, settings.width
        self.codebook = Frozen(codebook)
        self.conditioner, self.transformer = settings.build(
            self.condition_spec, causal=False, activation=activation, norm=norm, bias=bias
        )
        second = [nn.GELU(), nn.Linear(width, width)] if mlp_read else []
        self.read = nn.Sequential(nn.Linear(codebook.width, width), *second)
        self.place_table = nn.Embedding(spec.positions, width)
        self.level_table = nn.Embedding(len(spec.grid.sides), width)
        modulated = self.conditioner.by == "adaln" and bool(self.condition_spec.parts)
        self.modulation = nn.Linear(width, 2 * width) if modulated else None  # of the norm before the head
        self.head = Linear(width, spec.vocab, bias)
        initialise_parts(self.read, self.place_table, self.level_table, self.modulation, self.head)
        if modulated:
            self._initialise_modulation(gate_init)
        if zero_init_head:
            nn.init.zeros_(self.head.weight)
        self.cells = [side * side for side in spec.grid.sides]
        with torch.device("cpu"):
            self._tables = Constants(level=torch.arange(len(self.cells)).repeat_interleave(torch.tensor(self.cells)))

    def _initialise_modulation(self, gate_init: float) -> None:
        """VAR's: shifts and scales at half of a weight's size, gates far smaller."""
        shift, gate = 0.01, 0.02 * gate_init
        for block in self.transformer.blocks:
            for part, std in zip(block.modulation.weight.chunk(6), (shift, shift, gate) * 2):
                nn.init.trunc_normal_(part, std=std, a=-2 * std, b=2 * std) if std else nn.init.zeros_(part)
        nn.init.trunc_normal_(self.modulation.weight, std=shift, a=-2 * shift, b=2 * shift)

    # ------------------------------------------------------------------------------------------------ network

    def _of(self, scales: range) -> slice:
        """The cells of consecutive scales."""
        return slice(sum(self.cells[: scales[0]]), sum(self.cells[: scales[-1] + 1]))

    def _embed(self, codes: Tensor, scales: range, vector: Tensor | None, own: bool = False) -> Tensor:
        """What is fed of consecutive scales, float [B, n, D]; codes int64 [B, 1, N], vector float [B, D]."""
        cells, places = self._of(scales), self.place_table.weight
        level = self._tables.on(codes.device).level[cells]
        with torch.no_grad():
            sums = self.codebook.on(codes.device).accumulate(codes, [s + own for s in scales], own).transpose(1, 2)
        with no_autocast(codes.device):  # as in VAR
            x = self.read(sums.to(places.dtype)) + places[cells] + self.level_table(level)
        if vector is None or scales[0] > 0:
            return x
        first = self.cells[0]
        return torch.cat((x[:, :first] + vector[:, None].to(x.dtype), x[:, first:]), 1)

    def _seen(self, cells: slice, prefix: int, prefix_mask: Tensor | None) -> Tensor:
        """Which tokens see which: a scale itself and those before it, and the condition's prefix, which sees itself.

        Args:
            cells: whose rows are asked for; they start at -P for those of the prefix.
            prefix: P.
            prefix_mask: bool [B, P], the tokens of the prefix that are there; None: all.

        Returns:
            bool [B or 1, 1, n, P + cells.stop].
        """
        level = F.pad(self._tables.on(self.place_table.weight.device).level[: cells.stop], (prefix, 0), value=-1)
        mask = (level[cells.start + prefix :, None] >= level)[None]
        if prefix_mask is not None:
            mask = mask & F.pad(prefix_mask, (0, cells.stop), value=True)[:, None]
        return mask[:, None]

    def _hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> tuple[Tensor, Conditioned]:
        """codes int64 [B, 1, N] -> float [B, N, D], and the embedded condition. rng: for dropout; None: none."""
        self.check_shape(codes)
        given = self.conditioner(condition, len(codes))
        x = self._embed(codes, range(len(self.cells)), given.vector)
        prefix = 0 if given.prefix is None else given.prefix.shape[1]
        if given.prefix is not None:
            x = torch.cat((given.prefix.to(x.dtype), x), 1)
        mask = given.narrowed(self._seen(slice(-prefix, self.spec.positions), prefix, given.mask if prefix else None))
        x = dropout(x, self.dropout, rng)
        return self.transformer(x, mask=mask, rng=rng, **given.beside())[:, prefix:], given

    def _scores(self, hidden: Tensor, vector: Tensor | None) -> Tensor:
        """hidden float [B, n, D] -> [B, n, V]."""
        if self.modulation is not None:
            shift, scale = self.modulation(F.silu(vector))[:, None].chunk(2, -1)
            hidden = hidden * (1 + scale) + shift
        return self.head(hidden)

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """Teacher-forced logits, without a cache.

        Args:
            tokens: codes int64 [B, 1, N].
            condition: B rows; None: null.

        Returns:
            float [B, N, V]: of every cell given the scales before its own.
        """
        hidden, given = self._hidden(tokens.codes, condition or Condition(), None)
        return self._scores(hidden, given.vector)

    # ------------------------------------------------------------------------------------------------ NextScale

    def init_cache(self, condition: Condition, batch: int) -> _Cache:
        """As NextScale.init_cache."""
        given = self.conditioner(condition, batch)
        if given.prefix is None:
            return _Cache(self.transformer.init_cache(batch, self.spec.positions, **given.beside()), given.vector)
        prefix = given.prefix.shape[1]
        kv = self.transformer.init_cache(batch, self.spec.positions, prefix, given.mask)
        self.transformer.extend(given.prefix, None, kv, self._window(kv, slice(-prefix, 0), 1))
        kv.prefix_mask = given.mask if given.seen is None else given.seen
        return _Cache(kv, None)

    def _window(self, kv: KVCache, cells: slice, scales: int) -> Window:
        """Of the cells of one scale or more, or of the prefix: one alone sees all that is there."""
        mask = self._seen(cells, kv.prefix, kv.prefix_mask) if scales > 1 or kv.prefix_mask is not None else None
        return Window(kv.prefix + cells.stop, kv.prefix + cells.start, None, None, mask, causal=False)

    def logits(self, codes: Tensor, scales: range, cache: _Cache, own: bool = False) -> Tensor:
        """As NextScale.logits."""
        window = self._window(cache.kv, self._of(scales), len(scales))
        hidden = self.transformer.extend(self._embed(codes, scales, cache.vector, own), None, cache.kv, window)
        return self._scores(hidden[:, -self.cells[scales[-1]] :], cache.vector)

    # ------------------------------------------------------------------------------------------------ likelihood

    def _nats(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """float [B, N], 0 where a cell is absent."""
        hidden, given = self._hidden(codes, condition, rng)
        return token_nll(full_precision(self._scores(hidden, given.vector)), codes[:, 0], codes[:, 0] >= 0)

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None) -> LossOutput:
        """Mean nats per present cell.

        Args:
            tokens: codes int64 [B, 1, N].
            condition: B rows.
            rng: for condition dropout and dropout, which happen in training mode alone; None: none happens.

        Returns:
            LossOutput with the nats of each row and the terms nll and nll_scale{s}, per cell of the scale.
        """
        condition = self.drop_condition(condition, rng)
        nats, present = self._nats(tokens.codes, condition, rng if self.training else None), tokens.present[:, 0]
        count = present.sum()
        loss = nats.sum() / count.clamp(min=1)
        parts = zip(nats.detach().split(self.cells, 1), present.split(self.cells, 1))
        terms = {f"nll_scale{s}": part.sum() / there.sum().clamp(min=1) for s, (part, there) in enumerate(parts)}
        return LossOutput(loss, count, nats.detach().sum(1), {"nll": loss.detach(), **terms})

    @torch.no_grad()
    def nll_bound(self, tokens: Tokens, condition: Condition, rng: RowRNG | None = None, samples: int = 1) -> Tensor:
        """float [B]: the exact nats of each row; nothing is drawn, `rng` and `samples` are not needed."""
        return self._nats(tokens.codes, condition, None).sum(1)
