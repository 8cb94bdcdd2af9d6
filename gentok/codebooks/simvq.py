"""SimVQ (Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", arXiv 2411.02038):
a frozen random table behind one learnt linear map.

    e_v = W c_v, c frozen;    code = argmin_v |z - e_v|, straight-through;    |sg z - e|^2 + commitment * |z - sg e|^2

W moves all rows at once, those that no vector chose as well: the table follows the encoder as a whole and no row is left behind. The map
has no bias, as in the paper's formula.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import SingleLevel, nearest_rows, row_mean, straight_through
from gentok.rng import RowRNG

__all__ = ["SimVQ"]


class SimVQ(SingleLevel, id="codebook/simvq"):
    """A frozen table of vocab_size rows of dim channels, and a learnt map of them [dim, dim].

    width: channels in and out where they differ from dim (linear projections). commitment: weight of the pull of the encoder to its row.
    """

    def __init__(self, vocab_size: int, dim: int, width: int | None = None, commitment: float = 0.25):
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
        """float32 [V, dim], with gradient to the map."""
        return F.linear(self.frozen.float(), self.map.weight.float())

    def rows(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._table().detach())

    def learnt_rows(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._table())

    def search(self, x: Tensor) -> Tensor:
        return nearest_rows(x.double(), self._table().detach().double())

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        table = self._table()
        codes = nearest_rows(x.detach().reshape(-1, self.dim), table.detach()).view(x.shape[:2])
        rows = F.embedding(codes, table)
        losses = {
            "commitment": self.commitment * row_mean((x - rows.detach()).square(), present),
            "codebook": row_mean((rows - x.detach()).square(), present),
        }
        return codes, straight_through(rows, x), losses
