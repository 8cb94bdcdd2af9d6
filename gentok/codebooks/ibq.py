"""Index backpropagation quantization, IBQ (Shi et al., "Scalable Image Tokenization with Index
Backpropagation Quantization", arXiv 2412.02692, section 3.2): straight-through on the choice among all rows,
so that every row learns from every vector.

    s_v = z . e_v;    p = softmax(s);    code = argmax_v s_v
    one_hot = sg[one_hot(code) - p] + p;    vector = sum_v one_hot_v e_v
    commitment * (|vector - z|^2 + |sg[e_code] - z|^2) + codebook * |e_code - sg z|^2
    + entropy * (E[H(q)] - diversity * H(E[q])),    q = softmax(s / temperature)

The first term of the commitment is taken through one_hot; the entropies are MAGVIT-v2's.

Rows are compared by their inner product, not by their distance: their lengths matter, and a short row may
never be the best of its own direction. p takes part with every row in both passes; blocks of vectors bound
the memory to one block's [vectors, V], at the cost of computing each block twice. The mean of q is taken over
all processes.

Deviation: the published code adds 1e-5 inside the logarithms, here the entropies are exact. As there, rows
start from a normal of standard deviation 1: shorter ones shrink away under the commitment before the choice
has learnt anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gentok.codebooks.base import TableCodebook
from gentok.codebooks.search import block_bytes, entropy_of_mean, position_weights, row_mean
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, PositiveFloat, PositiveInt, VocabSize

__all__ = ["IBQ"]

BLOCK = 16
"""Times the size of a search's block that one block of p may have: it is computed twice, so fewer and larger
blocks are better."""


class IBQ(TableCodebook, id="codebook/ibq"):
    """A table of vocab_size rows of dim channels, learnt by gradient."""

    def __init__(
        self,
        vocab_size: VocabSize,
        dim: PositiveInt,
        width: PositiveInt | None = None,
        commitment: NonNegativeFloat = 1.0,
        codebook: NonNegativeFloat = 0.25,
        entropy: NonNegativeFloat = 0.05,
        diversity: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 0.01,
    ):
        """Draws the table.

        Args:
            vocab_size: V.
            dim: channels in which codes are compared.
            width: channels in and out where they differ from dim (linear projections).
            commitment: weight of the pull of the encoder to its row, and of all rows to the encoder.
            codebook: weight of the pull of the chosen row to the encoder.
            entropy: weight of E[H(q)] - diversity * H(E[q]).
            diversity: see `entropy`.
            temperature: of q, above 0.

        Raises:
            ValueError: temperature is not above 0.
        """
        super().__init__(dim, width, (vocab_size,))
        self.commitment, self.codebook, self.entropy = commitment, codebook, entropy
        self.diversity, self.temperature = diversity, temperature
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.normal_()

    def _table(self) -> Tensor:
        return self.weight.float()

    def quantize(self, x: Tensor, present: Tensor | None, rng: RowRNG | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        table, flat, weight = self._table(), x.flatten(0, 1), position_weights(x, present)
        size = max(1, BLOCK * block_bytes(x.device) // (4 * len(table)))
        parts = []
        for rows, w in zip(flat.split(size), weight.flatten().split(size)):
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._block, rows, w, table, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._block(rows, w, table))
        codes, soft = (torch.cat([part[i] for part in parts]).unflatten(0, x.shape[:2]) for i in (0, 1))
        row = F.embedding(codes, table)
        # the row to the bit; its gradient goes to the row itself, and through p to x and to all rows
        values = row + (soft - soft.detach())
        losses = {
            "commitment": self.commitment * row_mean((values - x).square() + (row.detach() - x).square(), present),
            "codebook": self.codebook * row_mean((row - x.detach()).square(), present),
        }
        if self.entropy:
            count = weight.sum()
            uncertainty = sum(part[2] for part in parts) / count.clamp(min=1)
            losses["entropy"] = self.entropy * (uncertainty - self.diversity * entropy_of_mean(sum(part[3] for part in parts), count))
        return codes, values, losses

    def _block(self, x: Tensor, weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [n, dim], weight [n] -> (codes [n], sum_v p_v sg[e_v] [n, dim], sum over n of weight H(q), sum
        over n of weight q [V])."""
        scores = x @ table.T
        codes, soft = scores.detach().argmax(1), scores.softmax(1) @ table.detach()
        if not self.entropy:
            return codes, soft, scores.new_zeros(()), scores.new_zeros(())
        log_q = (scores / self.temperature).log_softmax(1)
        q = log_q.exp()
        return codes, soft, -((q * log_q).sum(1) * weight).sum(), weight @ q
