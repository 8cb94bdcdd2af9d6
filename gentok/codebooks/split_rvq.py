"""Quantizers side by side: Mimi's split of meaning from sound (Défossez et al., "Moshi", arXiv 2410.00037,
section 3.3).

    vectors = semantic(z) + acoustic(z)    both quantise the same z, each between projections without biases
    codes   = the semantic levels, then the acoustic ones

The acoustic levels are not the residual of the semantic one: so the first level can be taught what to mean
(by distillation) at no cost to the sound, which need not be rebuilt on top of it. Losses are means over the
cells of both that were kept, as in the release.

no_quantization_rate: the probability, in training, that a row passes a branch unquantized, through its
projections alone; its codes, losses and statistics do not change, so the tables go on learning. One draw per
row and branch, as in the release; 0.5 in the paper.

`branches` of what it returns are both terms of the sum, quantized also where a row passes a branch
unquantized.

Dropout of levels is the acoustic codebook's own (`batch_dropout`: 1.0 is Mimi's, one uniform count for every
batch): the semantic levels are always kept. There are no nearest codes of a vector: a sum does not say which
of its terms gave what.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import BaseCodebook
from gentok.distributed import all_sum, world_size
from gentok.rng import RowRNG
from gentok.settings import Fraction
from gentok.types import Quantized

__all__ = ["SplitRVQ"]


class SplitRVQ(BaseCodebook, id="codebook/split_rvq"):
    """K = semantic.levels + acoustic.levels, the semantic ones first."""

    invertible = False
    nested_levels = True
    has_nearest = False

    def __init__(self, semantic: BaseCodebook, acoustic: BaseCodebook, no_quantization_rate: Fraction = 0.0):
        """Takes the codebooks as they are.

        Args:
            semantic: a ResidualCodebook with a width and in_bias=false, or any whose first levels are a code.
            acoustic: likewise, of the same width.
            no_quantization_rate: see the file; used in training where `forward` is given rng.

        Raises:
            ValueError: the codebooks do not fit each other.
        """
        if not semantic.in_width == semantic.width == acoustic.in_width == acoustic.width:
            raise ValueError(
                f"SplitRVQ takes two codebooks of one width: its semantic one is of {semantic.in_width} to {semantic.width}, its acoustic "
                f"one of {acoustic.in_width} to {acoustic.width}"
            )
        for name, book in (("semantic", semantic), ("acoustic", acoustic)):
            if book.levels > 1 and not book.nested_levels:
                raise ValueError(
                    f"SplitRVQ takes codebooks whose first levels are a code: take residual instead of its {name} {type(book).__name__}"
                )
        super().__init__(semantic.width, None, (*semantic.vocab_sizes, *acoustic.vocab_sizes))
        self.rate = no_quantization_rate
        self.semantic, self.acoustic = semantic, acoustic

    def reset_parameters(self) -> None:
        for book in (self.semantic, self.acoustic):
            book.reset_parameters()

    def _draw_unquantized(self, z: Tensor, rng: RowRNG | None) -> Tensor | None:
        """bool [B, 2]: the rows that pass each branch unquantized; None: none does."""
        if not self.training or self.rate == 0 or rng is None:
            return None
        return (rng.fork("bypass").uniform(2) < self.rate).to(z.device)

    def _unquantized(self, book: BaseCodebook, z: Tensor) -> Tensor:
        """z float [B, width, M] through a branch's projections alone."""
        return book.outward(book.inward(z))

    def _quantized(self, k: int, z: Tensor, n_levels: Tensor | None, rng: RowRNG | None) -> Quantized:
        """What branch k makes of z."""
        first, book = self.semantic.levels, (self.semantic, self.acoustic)[k]
        if n_levels is not None:
            n_levels = n_levels.clamp(max=first) if k == 0 else (n_levels - first).clamp(min=0)
        return book(z, n_levels=n_levels, rng=None if rng is None else rng.fork(k))

    def _shares(self, made: list[Quantized]) -> Tensor:
        """float [2]: the weights of the branches' losses, each a mean over the branch's cells of all
        processes."""
        count = torch.stack([(q.codes >= 0).any(2).sum() for q in made]).to(made[0].vectors)
        if self.training:
            count = all_sum(count) / world_size()
        return count / count.sum().clamp(min=1 / world_size())

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        self.inward(z)  # checks the shape
        made = [self._quantized(k, z, n_levels, rng) for k in (0, 1)]
        values, unquantized = [q.vectors for q in made], self._draw_unquantized(z, rng)
        if unquantized is not None:
            for k, book in enumerate((self.semantic, self.acoustic)):
                values[k] = torch.where(unquantized[:, k, None, None], self._unquantized(book, z), values[k])
        losses: dict[str, Tensor] = {}
        for q, share in zip(made, self._shares(made)):
            for name, loss in q.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * share
        codes, usage = torch.cat([q.codes for q in made], 1), torch.cat([q.usage for q in made])
        return Quantized(sum(values), codes, losses, usage, {"semantic": made[0].vectors, "acoustic": made[1].vectors})

    def lookup(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        semantic, acoustic = codes.tensor_split([self.semantic.levels], 1)
        return self.semantic.lookup(semantic) + self.acoustic.lookup(acoustic)
