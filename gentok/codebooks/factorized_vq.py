"""The factorized codebook of DAC (Kumar et al., arXiv 2306.06546, section 3.2), SNAC (arXiv 2410.14411) and
BigCodec (arXiv 2409.05377).

    x = W_in z (8 channels);   code = argmin_v | x / |x| - e_v / |e_v| |;   vectors = W_out e_code
    losses:  |sg x - e|^2 + commitment * |x - sg e|^2,   means over channels and positions, commitment = 0.25

The angle governs the choice alone (ViT-VQGAN, arXiv 2110.04627): what is passed on, and what both losses
compare, are the rows as they are, of any length. So it is VQ's gradient codebook with another comparison,
between weight-normalised projections with biases that start at 0. Rows start from N(0, 1). (The release also
draws the projections anew, without effect: see gentok/nn/dac.py.)

Deviation: `nearest` heeds lengths too, in the space that `lookup` returns, so that it undoes `lookup` for
rows of one direction as well. The release neither starts from data nor revives rows: kmeans_start = 0 and
revive_below = 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from gentok.codebooks.vq import VQ, VQOptions
from gentok.settings import PositiveInt, VocabSize

__all__ = ["FactorizedVQ"]


class FactorizedVQ(VQ, id="codebook/factorized_vq"):
    """A table of vocab_size rows of dim channels, between projections width -> dim -> width, learnt by
    gradient."""

    def __init__(self, vocab_size: VocabSize, dim: PositiveInt = 8, width: PositiveInt | None = None, **learning: VQOptions):
        """Makes a table and weight-normalised projections. The settings are VQ's; without a width there are
        no projections."""
        super().__init__(vocab_size, dim, width, normalize=False, **learning)
        for linear in self._projections():
            weight_norm(linear)

    def _projections(self) -> list[nn.Linear]:
        return [linear for linear in (self.project_in, self.project_out) if linear is not None]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.normal_()
        for linear in self._projections():
            if parametrize.is_parametrized(linear, "weight"):  # torch's own start, as in reset_parameters of a plain one
                linear.weight = nn.init.kaiming_uniform_(torch.empty_like(linear.weight), a=math.sqrt(5))
            linear.bias.zero_()

    def _compared(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
