"""What the networks of all token generators share: settings, a transformer with its condition, and the
cross-entropy of tokens.

The condition stands before the tokens (prefix), beside them (cross-attention) or inside every block (adaLN),
see nn/conditioning.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.cell_positions import cell_names, rotation_tables
from gentok.nn.conditioning import Conditioned, Conditioner
from gentok.nn.constants import Constants
from gentok.nn.rope import Rotation
from gentok.nn.transformer import Transformer, dropout, initialise
from gentok.rng import RowRNG
from gentok.settings import CheckedDataclass, Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import Condition, ConditionSpec, TokenSpec

__all__ = [
    "BidirectionalTrunk", "TransformerOptions", "TransformerSettings", "attend", "full_precision", "initialise_parts",
    "token_nll", "uniform_nll",
]  # fmt: skip


@dataclass(frozen=True)
class TransformerSettings(CheckedDataclass):
    """What every token transformer can be told.

    Attributes:
        width: D, channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        hidden: width of the feed-forward part; None: 8/3 D (4 D for gelu).
        condition_by: prefix, cross or adaln.
        condition_dropout: share of training rows whose condition becomes null, which guidance needs.
        rope: auto (axial on a raster), line, axial or none.
        qk_norm: whether queries and keys are normalised; cosine: l2-normalised, with a learned scale per head; layer: by a LayerNorm.
        dropout: rate, of embeddings and of both branches of a block.
    """

    width: PositiveInt = 256
    depth: Count = 6
    heads: PositiveInt = 4
    hidden: PositiveInt | None = None
    condition_by: str = "prefix"
    condition_dropout: Fraction = 0.1
    rope: str = "auto"
    qk_norm: bool | Literal["cosine", "layer"] = True
    dropout: FractionBelow1 = 0.0

    def build(self, condition_spec: ConditionSpec, adaln: bool = False, **options: Any) -> tuple[Conditioner, Transformer]:
        """Makes the network.

        Args:
            condition_spec: what it is conditioned on.
            adaln: whether its blocks are modulated by a vector although the condition gives none.
            options: further ones of Transformer.

        Returns:
            What embeds the condition, and the transformer that takes it.
        """
        by = self.condition_by if condition_spec.parts else "prefix"
        conditioner = Conditioner(condition_spec, self.width, self.condition_by)
        transformer = Transformer(
            self.width, self.depth, self.heads, self.hidden,
            qk_norm=self.qk_norm, adaln=adaln or by == "adaln", cross=by == "cross", dropout=self.dropout, **options,
        )  # fmt: skip
        return conditioner, transformer


TransformerOptions = Annotated[Any, TransformerSettings]
"""Of a constructor's `**options`: they are the fields of TransformerSettings (gentok/build.py reads this)."""


def initialise_parts(*parts: nn.Module | None) -> None:
    """Initialises the weights of modules, in this order, but for those that are None."""
    for part in parts:
        if part is not None:
            initialise(part)


def attend(
    transformer: Transformer,
    x: Tensor,
    given: Conditioned,
    tables: Rotation,
    tokens: Tensor | slice,
    *,
    mask: Tensor | None = None,
    rate: float = 0.0,
    rng: RowRNG | None = None,
    taps: Mapping[int, list[Tensor]] | None = None,
) -> Tensor:
    """Runs a transformer over tokens and their condition.

    Args:
        transformer: causal or bidirectional.
        x: float [B, T, D], the embedded tokens.
        given: the embedded condition.
        tables: rotations of the condition's places and of everything that a token can be.
        tokens: which rows of the tables are those of the tokens: a slice, or int64 [T] or [B, T].
        mask: bool [B, 1, P + T, P + T], True where seen, P being the length of the condition's prefix; None:
            the transformer's own.
        rate: dropout of what enters the transformer.
        rng: for dropout; None: none.
        taps: as in Transformer; what is appended is of the tokens alone.

    Returns:
        float [B, T, D], normalised.
    """
    cos, sin = tables[0][tokens], tables[1][tokens]
    prefix = 0 if given.prefix is None else given.prefix.shape[1]
    if given.prefix is not None:
        x = torch.cat((given.prefix.to(x.dtype), x), 1)
        before = tables[0][given.place], tables[1][given.place]
        cos, sin = (torch.cat((b.expand(*t.shape[:-4], *b.shape[-4:]), t), -4) for b, t in zip(before, (cos, sin)))
        if mask is None and given.mask is not None:
            mask = F.pad(given.mask, (0, x.shape[1] - prefix), value=True)[:, None]
            if transformer.causal:
                mask = mask & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = mask[:, None]
        mask = mask if mask is None else given.narrowed(mask)
    x = dropout(x, rate, rng)
    whole: dict[int, list[Tensor]] = {number: [] for number in taps or ()}
    x = transformer(x, (cos, sin), mask=mask, rng=rng, taps=whole, **given.beside())[:, prefix:]
    for number, outputs in whole.items():
        taps[number].extend(y[:, prefix:] for y in outputs)  # type: ignore[index]
    return x


def full_precision(logits: Tensor) -> Tensor:
    """float32 of anything below, as losses are computed in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def token_nll(logits: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Nats of tokens.

    Args:
        logits: float [B, N, V].
        target: int64 [B, N]; anything where nothing is present.
        present: bool [B, N].

    Returns:
        float [B, N], 0 where nothing is present.
    """
    target = target.masked_fill(~present, -100)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def uniform_nll(logits: Tensor, nll: Tensor, target: Tensor, present: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Cross-entropy against the uniform distribution, for label smoothing.

    Args:
        logits, target, present: as in `token_nll`, whose result is `nll`.
        nll: float [B, N].
        allowed: bool [B, N, V], the ids that are possible; None: all.

    Returns:
        float [B, N], 0 where nothing is present.
    """
    own = logits.gather(2, target.clamp(min=0)[..., None])[..., 0]
    mean = logits.mean(2) if allowed is None else logits.masked_fill(~allowed, 0.0).sum(2) / allowed.sum(2)
    return (nll + own - mean).masked_fill(~present, 0.0)  # nll + logit of the target is the logsumexp


class BidirectionalTrunk(nn.Module):
    """A transformer over N positions that see one another: adds each one's place, learned and by rotation,
    and the condition.

    Args:
        spec: whose positions they are.
        condition_spec: what it is conditioned on.
        settings: of the transformer.
        activation: of its feed-forward part, swiglu or gelu.
    """

    def __init__(self, spec: TokenSpec, condition_spec: ConditionSpec, settings: TransformerSettings, activation: str = "swiglu"):
        super().__init__()
        self.dropout = settings.dropout
        self.conditioner, self.transformer = settings.build(condition_spec, causal=False, activation=activation)
        with torch.device("cpu"):
            position = torch.arange(spec.positions)
            cos, sin = rotation_tables(spec, settings.rope, self.conditioner.places, self.transformer.head_width, position)
            named, names = cell_names(spec, None, position)
            self._tables = Constants(cos=cos, sin=sin, named=named)
        self.place_table = nn.Embedding(names, settings.width) if names else None
        initialise_parts(self.place_table)

    def forward(self, x: Tensor, condition: Condition, rng: RowRNG | None = None) -> Tensor:
        """Reads all positions.

        Args:
            x: float [B, N, D].
            condition: B rows.
            rng: for dropout; None: none.

        Returns:
            float [B, N, D], normalised.
        """
        tables = self._tables.on(x.device)
        if self.place_table is not None:
            x = x + self.place_table(tables.named).sum(-2)
        given, tokens = self.conditioner(condition, len(x)), slice(self.conditioner.places, None)
        return attend(self.transformer, x, given, (tables.cos, tables.sin), tokens, rate=self.dropout, rng=rng)
