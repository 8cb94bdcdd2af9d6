"""Residual quantization in which every level has projections of its own: DAC's (Kumar et al., arXiv 2306.06546, section 3.2).

    r_0 = z,    q_k = W_out,k e_k(W_in,k r_k),    r_{k+1} = r_k - sg q_k,    vectors = sum_k q_k

Each q_k is straight-through in its book's own few channels, so the decoder's gradient reaches all projections and, through them, z. Nothing
arrives twice as in a sum of plain straight-throughs: each arrives through a matrix W_out,k W_in,k of its own.

Deviation: the release subtracts q_k with its gradient. Then dr_{k+1}/dr_k = 1 - W_out,k W_in,k: a commitment reaches the encoder only
through what the levels before it do not span, none of it where they are square and inverse to each other, as in EnCodec's case. Here the
subtraction is of values, and every level's commitment reaches the encoder whole. Numbers are the same.

Losses are those of the release: sums over the levels of means over the batch, in which a level that a row has dropped counts as 0.
Dropout of levels as in Residual: `level_dropout` is the probability that a row keeps only its first n levels, n uniform on 1..K. The
release cuts the first floor(p B) rows of a batch instead: the expected share is the same, and here a row's fate is not its place's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import float32
from gentok.codebooks.residual import ResidualCodebook
from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.types import Quantized

__all__ = ["ProjectedResidual"]


class ProjectedResidual(ResidualCodebook, id="codebook/projected_residual"):
    """K = levels copies of a codebook of one level with projections, each with fresh parameters.

    codebook: the book to copy, whose width is the networks' (D in and out). level_dropout, batch_dropout: as in Residual.
    """

    own_projections = True

    def __init__(self, codebook: Codebook, levels: int, level_dropout: float = 0.0, batch_dropout: float = 0.0):
        if codebook.levels == 1 and not getattr(codebook, "projected", False):
            raise ValueError(
                f"{type(self).__name__} takes a codebook with projections of its own: give it a width that is not its dim "
                f"(it has dim={getattr(codebook, 'dim', codebook.width)} and no projections), or use Residual"
            )
        super().__init__(codebook, levels, None, level_dropout, batch_dropout)

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of K levels. n_levels int64 [B]: the first levels of each row to use; the others are ABSENT."""
        residual = self.inward(z).transpose(1, 2)
        if n_levels is None and rng is not None and self.training and (self.level_dropout > 0 or self.batch_dropout > 0):
            n_levels = self._draw_n_levels(len(z), rng).to(z.device)
        total, codes, usage, losses = torch.zeros_like(residual), [], [], {}
        for k in range(self.levels):
            here = None if n_levels is None else (n_levels > k).long()
            q = self.book(k)(self._shrunk(k, residual), n_levels=here, rng=None if rng is None else rng.fork(k))
            value = self._grown(k, q.vectors, z.shape[2])
            total, residual = total + value, residual - value.detach()
            codes.append(self._placed(k, q.codes, z.shape[2]))
            usage.append(q.usage)
            share = 1.0 if here is None else here.float().mean()
            for name, loss in q.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * share
        return Quantized(total, torch.cat(codes, 1), losses, torch.cat(usage))

    def _shrunk(self, level: int, x: Tensor) -> Tensor:
        """The residual float [B, width, M] as the level's book is given it."""
        return x

    def _grown(self, level: int, vectors: Tensor, positions: int) -> Tensor:
        """The book's vectors as they are added, float [B, width, M = positions]."""
        return vectors

    def _placed(self, level: int, codes: Tensor, positions: int) -> Tensor:
        """The book's codes in their cells, int64 [B, 1, M = positions]."""
        return codes
