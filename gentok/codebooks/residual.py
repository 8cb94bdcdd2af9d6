"""Residual quantization: every level codes what the levels before it left over (Zeghidour et al.,
SoundStream, arXiv 2107.03312; Lee et al., RQ-VAE, arXiv 2203.01941).

    r_0 = z,    q_k = codebook_k(r_k),    r_{k+1} = r_k - sg q_k,    vectors = z + sg(sum_k q_k - z)

One straight-through over the sum, and detached values in the subtraction: with a straight-through inside,
r_{k+1} has no gradient to the encoder, and every commitment but the first is dead.

Dropout of levels, so that any number of them is a valid code: `level_dropout` is the probability that a row
keeps only its first n levels, n uniform on 1..K; `batch_dropout` the same for the whole batch at once. The
draw of a batch comes from the sum, over the rows of all processes, of one 64-bit word each: uniform, the same
everywhere, and the same however the batch is spread.

Losses are means over the cells that were kept: of the whole batch, in the mean over processes. Codebooks that
discard the size of what they code (VQ with normalize) lose that of the residual: give them normalize=false.
The projections stand around all levels; the one behind has no bias, since a bias would be added although no
level is present.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, straight_through
from gentok.codebooks.search import draw_for_all
from gentok.distributed import all_sum, world_size
from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.settings import CheckedDataclass, Count, Fraction, PositiveInt
from gentok.types import Quantized

__all__ = ["DropoutOptions", "ResidualCodebook"]


@dataclass(frozen=True)
class LevelDropout(CheckedDataclass):
    """Dropout of levels, in training where `forward` is given rng and no n_levels.

    Attributes:
        level_dropout: probability that a row keeps only its first levels.
        batch_dropout: the same, for the whole batch.
    """

    level_dropout: Fraction = 0.0
    batch_dropout: Fraction = 0.0


DropoutOptions = Annotated[Any, LevelDropout]
"""Of a constructor's `**options`: they are the fields of LevelDropout (gentok/build.py reads this)."""


class ResidualCodebook(BaseCodebook, id="codebook/residual"):
    """K = levels copies of a codebook of one level, each with fresh parameters; one table for all of them
    with `shared` (RQ-VAE)."""

    invertible = False
    nested_levels = True
    own_projections = False
    """Whether every level has projections of its own (ProjectedResidual)."""

    def __init__(
        self,
        codebook: Codebook,
        levels: Count,
        width: PositiveInt | None = None,
        shared: bool = False,
        in_bias: bool = True,
        **dropout: DropoutOptions,
    ):
        """Copies the codebook.

        Args:
            codebook: of one level, without projections of its own.
            levels: K.
            width: channels in and out where they differ from the codebook's (linear projections).
            shared: whether all levels have one table.
            in_bias: whether the projection before has a bias.
            dropout: as in LevelDropout.

        Raises:
            ValueError: the codebook has several levels, or projections.
        """
        if codebook.levels != 1:
            raise ValueError(f"{type(self).__name__} takes a codebook of one level; {type(codebook).__name__} has {codebook.levels}")
        if not self.own_projections:
            self.refuse_projections(codebook)
        super().__init__(codebook.width, width, codebook.vocab_sizes * levels, out_bias=False, in_bias=in_bias)
        settings = LevelDropout(**dropout)
        self.shared, self.level_dropout, self.batch_dropout = shared, settings.level_dropout, settings.batch_dropout
        self.books = nn.ModuleList([copy.deepcopy(codebook) for _ in range(1 if shared else levels)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for book in self.books:
            book.reset_parameters()

    def book(self, level: int) -> Codebook:
        """The codebook of a level."""
        return self.books[0 if self.shared else level]

    # ------------------------------------------------------------------------------------------------- dropout of levels

    def _draw_n_levels(self, batch: int, rng: RowRNG) -> Tensor:
        """int64 [B]: how many levels each row keeps."""
        n_levels = self._cut(rng.fork("levels").uniform(2), self.level_dropout)
        if self.batch_dropout > 0:
            n_levels = n_levels.clamp(max=self._cut(draw_for_all(rng.fork("batch")), self.batch_dropout))
        return n_levels

    def _cut(self, u: Tensor, probability: float) -> Tensor:
        """u float [..., 2] in [0, 1): whether to cut, and where -> int64 [...]: the levels kept."""
        return torch.where(u[..., 0] < probability, 1 + (u[..., 1] * self.levels).long(), self.levels)

    def _rows_using(self, level: int, n_levels: Tensor | None) -> Tensor | None:
        """n_levels int64 [B] -> int64 [B]: 1 in the rows that use the level, as its codebook's own n_levels;
        None: all use it."""
        return None if n_levels is None else (n_levels > level).long()

    # -------------------------------------------------------------------------------------------------------- one level

    def _lowered(self, level: int, residual: Tensor) -> Tensor:
        """The residual float [B, D, M] as the level's codebook is given it."""
        return residual

    def _raised(self, level: int, vectors: Tensor, positions: int) -> Tensor:
        """The level's vectors as they are added, float [B, D, M = positions]."""
        return vectors

    def _placed(self, level: int, codes: Tensor, positions: int) -> Tensor:
        """The level's codes in their cells, int64 [B, 1, M = positions]."""
        return codes

    def _left_over(self, residual: Tensor, value: Tensor) -> Tensor:
        """What the next level codes. Without gradient to the value: see the file."""
        return residual - value.detach()

    def _count(self, residual: Tensor, rows: Tensor | None) -> Tensor | float:
        """The weight of a level's losses, which are means over the rows that use it (int64 [B]; None:
        all)."""
        return residual.new_full((), residual.shape[0]) if rows is None else rows.sum().to(residual)

    # ---------------------------------------------------------------------------------------------------------- forward

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        x = self.inward(z).transpose(1, 2)
        if n_levels is None and rng is not None and self.training and (self.level_dropout > 0 or self.batch_dropout > 0):
            n_levels = self._draw_n_levels(len(z), rng).to(z.device)
        total, residual, positions = torch.zeros_like(x), x, z.shape[2]
        codes, usage, losses, counts = [], [], {}, []
        for k in range(self.levels):
            rows = self._rows_using(k, n_levels)
            q = self.book(k)(self._lowered(k, residual), n_levels=rows, rng=None if rng is None else rng.fork(k))
            value = self._raised(k, q.vectors if self.own_projections else q.vectors.detach(), positions)
            total, residual = total + value, self._left_over(residual, value)
            codes.append(self._placed(k, q.codes, positions))
            usage.append(q.usage)
            counts.append(self._count(x, rows))
            for name, loss in q.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * counts[-1]
        losses = self._averaged(losses, counts, n_levels is not None)
        return Quantized(self._vectors(total, x), torch.cat(codes, 1), losses, torch.cat(usage))

    def _averaged(self, losses: dict[str, Tensor], counts: list[Tensor | float], cut: bool) -> dict[str, Tensor]:
        """Sums of losses over the cells of the batch, of which some are left out where `cut` -> means over
        those that were kept."""
        count = sum(counts)
        if self.training and cut:  # processes that kept fewer cells count less: their mean is that of the whole batch
            count = all_sum(count) / world_size()
        return {name: loss / count.clamp(min=1 / world_size()) for name, loss in losses.items()}

    def _vectors(self, total: Tensor, x: Tensor) -> Tensor:
        """The sum of all levels float [B, dim, M] -> vectors float [B, width, M] with gradient to x."""
        return self.outward(straight_through(total, x).transpose(1, 2))

    # ----------------------------------------------------------------------------------------------------------- lookup

    def _added(self, level: int, codes: Tensor) -> Tensor:
        return self.book(level).lookup(codes)

    def _found(self, level: int, residual: Tensor) -> Tensor:
        return super()._found(level, residual) if self.projected else self.book(level).nearest(residual)

    def table(self, level: int = 0) -> Tensor:
        return self.outward(self.book(level).table()[None])[0].T
