"""Quantizers side by side: Mimi's split of meaning from sound (Défossez et al., "Moshi", arXiv 2410.00037, section 3.3).

    vectors = semantic(z) + acoustic(z)          both quantise the same z, each between projections of its own, without biases
    codes   = the semantic levels, then the acoustic ones

The acoustic levels are not the residual of the semantic one: so the first level can be taught what to mean (by distillation) at no cost to
the sound, which need not be rebuilt on top of it. Losses are means over the cells of both that were kept, as in the release.

no_quantization_rate: the probability, in training, that a row passes a branch unquantized, through its projections alone; its codes, losses
and statistics are as ever, so the tables go on learning. One draw per row and branch, as in the release; 0.5 in the paper.

`branches` of what it returns are both terms of the sum, quantized also where a row passes a branch unquantized.

Dropout of levels is the acoustic book's own (`batch_dropout`: 1.0 is Mimi's, one uniform count for every batch): the semantic levels are
always kept. There are no nearest codes of a vector: a sum does not say which of its terms gave what.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import BaseCodebook, float32
from gentok.distributed import all_sum, world_size
from gentok.rng import RowRNG
from gentok.types import Quantized

__all__ = ["SplitRVQ"]


class SplitRVQ(BaseCodebook, id="codebook/split_rvq"):
    """K = semantic.levels + acoustic.levels; both books take and give the same width (Residual with a width and in_bias=false).

    no_quantization_rate: see above; used in training where `forward` is given noise. Raises ValueError with a line where the books do not
    fit each other.
    """

    invertible = False
    nested_levels = True
    has_nearest = False

    def __init__(self, semantic: BaseCodebook, acoustic: BaseCodebook, no_quantization_rate: float = 0.0):
        if not semantic.in_width == semantic.width == acoustic.in_width == acoustic.width:
            raise ValueError(
                f"Split takes two codebooks of one width: its semantic one is of {semantic.in_width} to {semantic.width}, its acoustic "
                f"one of {acoustic.in_width} to {acoustic.width}"
            )
        for name, book in (("semantic", semantic), ("acoustic", acoustic)):
            if book.levels > 1 and not book.nested_levels:
                raise ValueError(f"Split takes books whose first levels are a code; its {name} one, a {type(book).__name__}, is not such")
        if not 0 <= no_quantization_rate <= 1:
            raise ValueError(f"no_quantization_rate is a probability; got {no_quantization_rate}")
        super().__init__(semantic.width, None, (*semantic.vocab_sizes, *acoustic.vocab_sizes))
        self.levels, self.rate = semantic.levels + acoustic.levels, no_quantization_rate
        self.semantic, self.acoustic = semantic, acoustic

    def reset_parameters(self) -> None:
        self.semantic.reset_parameters(), self.acoustic.reset_parameters()

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of K levels. n_levels int64 [B]: the first levels of each row to use, the semantic ones first."""
        self.inward(z)  # checks the shape
        first = self.semantic.levels
        kept = (None, None) if n_levels is None else (n_levels.clamp(max=first), (n_levels - first).clamp(min=0))
        bypass = None
        if self.training and self.rate > 0 and rng is not None:
            bypass = (rng.fork("bypass").uniform(2) < self.rate).to(z.device)
        vectors, made, weights = 0.0, [], []
        for k, (book, here) in enumerate(zip((self.semantic, self.acoustic), kept)):
            q = book(z, n_levels=here, rng=None if rng is None else rng.fork(k))
            value = q.vectors
            if bypass is not None:
                through = book.outward(book.inward(z)).transpose(1, 2)
                value = torch.where(bypass[:, k, None, None], through, value)
            vectors = vectors + value
            made.append(q)
            weights.append((q.codes >= 0).any(2).sum())
        weights = torch.stack(weights).to(vectors)
        if self.training:  # every book's losses are means over its cells of all processes
            weights = all_sum(weights) / world_size()
        share = weights / weights.sum().clamp(min=1 / world_size())
        losses: dict[str, Tensor] = {}
        for q, part in zip(made, share):
            for name, loss in q.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * part
        codes, usage = torch.cat([q.codes for q in made], 1), torch.cat([q.usage for q in made])
        return Quantized(vectors, codes, losses, usage, {name: q.vectors for name, q in zip(("semantic", "acoustic"), made)})

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N]; absent levels add nothing."""
        self.check_codes(codes)
        semantic, acoustic = codes.tensor_split([self.semantic.levels], 1)
        return self.semantic.lookup(semantic) + self.acoustic.lookup(acoustic)

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """Raises TypeError: a sum does not say which of its terms gave what."""
        raise TypeError("Split has no nearest codes: its quantizers work side by side, and their sum does not say which gave what")

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them."""
        first = self.semantic.levels
        return self.semantic.table(level) if level < first else self.acoustic.table(level - first)
