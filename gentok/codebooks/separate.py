"""Two codebooks with an index each: the baseline that TokenFlow's shared mapping is measured against (arXiv 2412.03069, table 6).

    codes[:, 0] = semantic book(first channels),   codes[:, 1] = pixel book(the others)

Each half is coded as if it were alone, so a cell costs two codes. The books are any of one level, and keep their own losses and
statistics; the vectors are the concatenation of theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.codebooks.base import BaseCodebook, float32
from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Quantized

__all__ = ["SeparateCodebooks"]


class SeparateCodebooks(BaseCodebook, id="codebook/separate"):
    """K = 2: level 0 is the code of `semantic`, level 1 that of `pixel`, both codebooks of one level without shared channels.

    Inputs float [B, semantic.in_width + pixel.in_width, M], vectors float32 [B, semantic.width + pixel.width, M]; both widths must agree
    within each book, so that `parts` names the same channels on either side. Losses are summed under semantic_NAME and pixel_NAME.
    """

    invertible = True

    def __init__(self, semantic: Codebook, pixel: Codebook):
        for name, book in (("semantic", semantic), ("pixel", pixel)):
            if book.levels != 1 or book.in_width != book.width or not book.invertible:
                raise ValueError(
                    f"Separate takes codebooks of one level whose codes `nearest` can find; its {name} book, a {type(book).__name__}, "
                    f"has {book.levels} level(s) of width {book.in_width} to {book.width}"
                )
        super().__init__(semantic.width + pixel.width, None, (*semantic.vocab_sizes, *pixel.vocab_sizes))
        self.levels = 2
        self.semantic, self.pixel = semantic, pixel
        self.parts = {"semantic": slice(0, semantic.width), "pixel": slice(semantic.width, self.width)}

    def reset_parameters(self) -> None:
        for book in self._books():
            book.reset_parameters()

    def _books(self) -> tuple[Codebook, Codebook]:
        return self.semantic, self.pixel

    def _halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([book.width for book in self._books()], 1)

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of two levels. n_levels int64 [B]: 0 leaves out both codes of a row, 1 that of the pixels."""
        self.inward(z)  # checks the shape
        made = []
        for k, (book, half) in enumerate(zip(self._books(), self._halves(z.float()))):
            here = None if n_levels is None else (n_levels > k).long()
            made.append(book(half, n_levels=here, rng=None if rng is None else rng.fork(k)))
        losses = {f"{part}_{name}": loss for part, q in zip(self.parts, made) for name, loss in q.losses.items()}
        join = [torch.cat([getattr(q, what) for q in made], dim) for what, dim in (("vectors", 1), ("codes", 1), ("usage", 0))]
        return Quantized(join[0], join[1], losses, join[2])

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, 2, N] -> vectors float32 [B, width, N]; a cell below 0 leaves its half at 0."""
        self.check_codes(codes)
        return torch.cat([book.lookup(codes[:, k : k + 1]) for k, book in enumerate(self._books())], 1)

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N] -> codes int64 [B, 2, N]; with `given`, only its UNKNOWN cells."""
        if given is None:
            given = torch.full((len(vectors), 2, vectors.shape[2]), UNKNOWN, dtype=torch.int64, device=vectors.device)
        halves = zip(self._books(), self._halves(vectors), given.split(1, 1))
        return torch.cat([book.nearest(half, here) for book, half, here in halves], 1)

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them, 0 in the channels of the other half."""
        rows = self._books()[level].table()
        return F.pad(rows, (0, self.pixel.width) if level == 0 else (self.semantic.width, 0))
