"""SNAC's quantizer (Siuzdak et al., "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411): levels of residuals at several frame rates.

    x_k = mean of r_k over every stride_k frames;   q_k = W_out,k e_k(W_in,k x_k), repeated stride_k times;   r_{k+1} = r_k - sg q_k
    vectors = sum_k q_k

Level k has a code at the positions n % stride_k == 0 and none elsewhere (ABSENT there; `strides` is what the tokens' spec says of it).
Coarse levels cost few codes and look far. Everything else, gradients and losses and dropout of levels, is ProjectedResidual's; SNAC's
release has no training code, so its losses are those of DAC, which it follows.

A codec continues a sound with zeros to a multiple of `multiple` frames (the least common multiple of the strides), as the release does.
Elsewhere the last frames may be fewer than a stride: they are averaged by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.codebooks.base import fill, float32
from gentok.codebooks.projected_residual import ProjectedResidual
from gentok.interfaces import Codebook
from gentok.types import ABSENT, UNKNOWN, Grid

__all__ = ["StridedResidual"]


class StridedResidual(ProjectedResidual, id="codebook/strided_residual"):
    """K = len(strides) copies of a codebook of one level with projections, each with fresh parameters.

    codebook: the book to copy, whose width is the networks' (D in and out). strides: frames per code of each level, coarse to fine.
    level_dropout, batch_dropout: as in Residual. Raises ValueError with a line on strides below 1.
    """

    def __init__(self, codebook: Codebook, strides: Sequence[int], level_dropout: float = 0.0, batch_dropout: float = 0.0):
        if not strides or min(strides) < 1:
            raise ValueError(f"StridedResidual needs the frames per code of each level, 1 or more; got {tuple(strides)}")
        super().__init__(codebook, len(strides), level_dropout, batch_dropout)
        self.strides = tuple(int(s) for s in strides)
        self.multiple = math.lcm(*self.strides)

    def grid(self, h: int, w: int) -> Grid:
        """Raises ValueError: levels of several rates are made of frames in time, not of the cells of a picture."""
        raise ValueError(f"StridedResidual codes frames of sound at several rates ({self.strides}); a picture has none: use it in a codec")

    def _shrunk(self, level: int, x: Tensor) -> Tensor:
        return F.avg_pool1d(x, self.strides[level], ceil_mode=True)

    def _grown(self, level: int, vectors: Tensor, positions: int) -> Tensor:
        return vectors.repeat_interleave(self.strides[level], 2)[..., :positions]

    def _placed(self, level: int, codes: Tensor, positions: int) -> Tensor:
        cells = codes.new_full((len(codes), 1, positions), ABSENT)
        cells[..., :: self.strides[level]] = codes
        return cells

    def _added(self, level: int, codes: Tensor) -> Tensor:
        """What the codes int64 [B, 1, N] of a level add; those below 0, and those in cells that the level has not, nothing."""
        return self._grown(level, self.book(level).lookup(codes[..., :: self.strides[level]]), codes.shape[2])

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N]; absent cells add nothing."""
        self.check_codes(codes)
        total = codes.new_zeros(codes.shape[0], self.dim, codes.shape[2], dtype=torch.float32)
        for k in range(self.levels):
            total = total + self._added(k, codes[:, k : k + 1])
        return total

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N] -> codes int64 [B, K, N], greedily, coarse to fine: the row nearest to a stride's mean is the nearest
        to its vectors. Only the UNKNOWN cells of `given` are filled; cells that a level has not are ABSENT."""
        n = vectors.shape[2]
        if given is None:
            given = torch.full((len(vectors), self.levels, n), UNKNOWN, dtype=torch.int64, device=vectors.device)
        residual = vectors.float() - self.lookup(given)
        levels = []
        for k in range(self.levels):
            here = given[:, k : k + 1, :: self.strides[k]]
            found = self.book(k).nearest(self._shrunk(k, residual))
            levels.append(self._placed(k, fill(found, here), n))
            fresh = torch.where(here == UNKNOWN, found, ABSENT)
            residual = residual - self._added(k, self._placed(k, fresh, n))
        return torch.cat(levels, 1)
