"""Residual quantization in which every level has projections of its own: DAC's (Kumar et al., arXiv
2306.06546, section 3.2).

    r_0 = z,    q_k = W_out,k e_k(W_in,k r_k),    r_{k+1} = r_k - sg q_k,    vectors = sum_k q_k

Each q_k is straight-through in its codebook's own few channels, so the decoder's gradient reaches all
projections and, through them, z. Nothing arrives twice as in a sum of plain straight-throughs: each arrives
through a matrix W_out,k W_in,k of its own.

Deviation: the release subtracts q_k with its gradient. Then dr_{k+1}/dr_k = 1 - W_out,k W_in,k: a commitment
reaches the encoder only through what the levels before it do not span, none of it where they are square and
inverse to each other, as in EnCodec's case. Here the subtraction is of values, and every level's commitment
reaches the encoder whole. Numbers are the same.

Losses are those of the release: sums over the levels of means over the batch, in which a level that a row has
dropped counts as 0. Dropout of levels as in ResidualCodebook: `level_dropout` is the probability that a row
keeps only its first n levels, n uniform on 1..K. The release cuts the first floor(p B) rows of a batch
instead: the expected share is the same, and here it does not depend on a row's place in the batch.
"""

from __future__ import annotations

from torch import Tensor

from gentok.codebooks.residual import DropoutOptions, ResidualCodebook
from gentok.interfaces import Codebook
from gentok.settings import Count

__all__ = ["ProjectedResidual"]


class ProjectedResidual(ResidualCodebook, id="codebook/projected_residual"):
    """K = levels copies of a codebook of one level with projections, each with fresh parameters."""

    own_projections = True

    def __init__(self, codebook: Codebook, levels: Count, **dropout: DropoutOptions):
        """Copies the codebook, whose width is the networks' (D in and out). Dropout as in ResidualCodebook.

        Raises:
            ValueError: the codebook has several levels, or no projections.
        """
        if codebook.levels == 1 and not codebook.projected:
            raise ValueError(
                f"{type(self).__name__} takes a codebook with projections of its own: give it a width that is not its dim "
                f"(it has dim={codebook.dim} and no projections), or use ResidualCodebook"
            )
        super().__init__(codebook, levels, **dropout)

    def _count(self, residual: Tensor, rows: Tensor | None) -> Tensor | float:
        return 1.0 if rows is None else rows.float().mean()

    def _averaged(self, losses: dict[str, Tensor], counts: list[Tensor | float], cut: bool) -> dict[str, Tensor]:
        return losses

    def _vectors(self, total: Tensor, x: Tensor) -> Tensor:
        return total
