"""SimVQ (Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
arXiv 2411.02038): a frozen random table behind one learnt linear map.

    e_v = W c_v, c frozen;    code = argmin_v |z - e_v|, straight-through
    loss: |sg z - e|^2 + commitment * |z - sg e|^2

W moves all rows at once, those that no vector chose as well: the table follows the encoder as a whole and no
row is left behind. The map has no bias, as in the paper's formula.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import TableCodebook
from gentok.settings import NonNegativeFloat, PositiveInt, VocabSize

__all__ = ["SimVQ"]


class SimVQ(TableCodebook, id="codebook/simvq"):
    """A frozen table of vocab_size rows of dim channels, and a learnt map of them [dim, dim]."""

    def __init__(self, vocab_size: VocabSize, dim: PositiveInt, width: PositiveInt | None = None, commitment: NonNegativeFloat = 0.25):
        """Draws the table.

        Args:
            vocab_size: V.
            dim: channels in which codes are compared.
            width: channels in and out where they differ from dim (linear projections).
            commitment: weight of the pull of the encoder to its row.
        """
        super().__init__(dim, width, (vocab_size,))
        self.commitment = commitment
        self.register_buffer("frozen", torch.empty(vocab_size, dim))
        self.map = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.frozen.normal_(std=self.dim**-0.5)
        self.map.reset_parameters()

    def _table(self) -> Tensor:
        return F.linear(self.frozen.float(), self.map.weight.float())
