"""SNAC's quantizer (Siuzdak et al., "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411): levels of
residuals at several frame rates.

    x_k = mean of r_k over every stride_k frames;   q_k = W_out,k e_k(W_in,k x_k), repeated stride_k times
    r_{k+1} = r_k - sg q_k
    vectors = sum_k q_k

Level k has a code at the positions n % stride_k == 0 and none elsewhere (ABSENT there; `strides` is what the
tokens' spec says of it). Coarse levels cost few codes and look far. Everything else, gradients and losses and
dropout of levels, is ProjectedResidual's; SNAC's release has no training code, so its losses are those of
DAC, which it follows.

A codec continues a sound with zeros to a multiple of `multiple` frames (the least common multiple of the
strides), as the release does. Elsewhere the last frames may be fewer than a stride: they are averaged by
themselves.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from gentok.codebooks.projected_residual import ProjectedResidual
from gentok.codebooks.residual import DropoutOptions
from gentok.interfaces import Codebook
from gentok.settings import PositiveInts
from gentok.types import ABSENT, Grid

__all__ = ["StridedResidual"]


class StridedResidual(ProjectedResidual, id="codebook/strided_residual"):
    """K = len(strides) copies of a codebook of one level with projections, each with fresh parameters."""

    def __init__(self, codebook: Codebook, strides: PositiveInts, **dropout: DropoutOptions):
        """Copies the codebook, whose width is the networks' (D in and out). Dropout as in ResidualCodebook.

        Args:
            codebook: of one level.
            strides: frames per code of each level, coarse to fine.
            dropout: as in gentok.codebooks.residual.LevelDropout.

        Raises:
            ValueError: a stride is below 1, or the codebook has several levels or no projections.
        """
        if not strides or min(strides) < 1:
            raise ValueError(f"StridedResidual needs the frames per code of each level, 1 or more; got {tuple(strides)}")
        super().__init__(codebook, len(strides), **dropout)
        self.strides = tuple(int(s) for s in strides)
        self.multiple = math.lcm(*self.strides)

    def grid(self, h: int, w: int) -> Grid:
        """Raises ValueError: levels of several rates are made of frames in time, not of the cells of an
        image."""
        raise ValueError(f"StridedResidual codes frames of sound at several rates ({self.strides}); an image has none: use it in a codec")

    def _lowered(self, level: int, residual: Tensor) -> Tensor:
        return F.avg_pool1d(residual, self.strides[level], ceil_mode=True) if residual.shape[2] else residual

    def _raised(self, level: int, vectors: Tensor, positions: int) -> Tensor:
        return vectors.repeat_interleave(self.strides[level], 2)[..., :positions]

    def _placed(self, level: int, codes: Tensor, positions: int) -> Tensor:
        cells = codes.new_full((codes.shape[0], 1, positions), ABSENT)
        cells[..., :: self.strides[level]] = codes
        return cells

    def _added(self, level: int, codes: Tensor) -> Tensor:
        return self._raised(level, super()._added(level, codes[..., :: self.strides[level]]), codes.shape[2])

    def _found(self, level: int, residual: Tensor) -> Tensor:
        # the row nearest to a stride's mean is the nearest to its vectors
        return self._placed(level, super()._found(level, self._lowered(level, residual)), residual.shape[2])
