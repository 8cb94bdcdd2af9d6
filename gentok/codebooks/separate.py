"""Two codebooks with an index each: the baseline that TokenFlow's shared mapping is measured against (arXiv
2412.03069, table 6).

    codes[:, 0] = semantic codebook(first channels),   codes[:, 1] = pixel codebook(the others)

Each half is coded as if it were alone, so a cell costs two codes. The codebooks are any of one level, and
keep their own losses and statistics; the vectors are the concatenation of theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import BaseCodebook
from gentok.errors import counted
from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.types import Quantized

__all__ = ["SeparateCodebooks"]


class SeparateCodebooks(BaseCodebook, id="codebook/separate"):
    """K = 2: level 0 is the code of `semantic`, level 1 that of `pixel`, both codebooks of one level without
    shared channels.

    Inputs float [B, semantic.in_width + pixel.in_width, M], vectors float32 [B, semantic.width + pixel.width,
    M]. Losses have the names semantic_NAME and pixel_NAME.
    """

    def __init__(self, semantic: Codebook, pixel: Codebook):
        """Takes the codebooks as they are.

        Args:
            semantic: of one level, invertible, as wide behind as before, so that `parts` names the same
                channels on either side.
            pixel: likewise.

        Raises:
            ValueError: a codebook is not such.
        """
        for name, book in (("semantic", semantic), ("pixel", pixel)):
            if book.levels != 1 or book.in_width != book.width or not book.invertible:
                raise ValueError(
                    f"SeparateCodebooks takes codebooks of one level whose codes `nearest` can find; its {name} codebook, a "
                    f"{type(book).__name__}, has {counted(book.levels, 'level')} of width {book.in_width} to {book.width}"
                )
        super().__init__(semantic.width + pixel.width, None, (*semantic.vocab_sizes, *pixel.vocab_sizes))
        self.semantic, self.pixel = semantic, pixel
        self.parts = {"semantic": slice(0, semantic.width), "pixel": slice(semantic.width, self.width)}

    def reset_parameters(self) -> None:
        for book in self._books():
            book.reset_parameters()

    def _books(self) -> tuple[Codebook, Codebook]:
        return self.semantic, self.pixel

    def _halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([book.width for book in self._books()], 1)

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """n_levels: 0 leaves out both codes of a row, 1 that of the pixels."""
        self.inward(z)  # checks the shape
        made = []
        for k, (book, half) in enumerate(zip(self._books(), self._halves(z.float()))):
            used = None if n_levels is None else (n_levels > k).long()
            made.append(book(half, n_levels=used, rng=None if rng is None else rng.fork(k)))
        vectors, codes = torch.cat([q.vectors for q in made], 1), torch.cat([q.codes for q in made], 1)
        losses = {f"{part}_{name}": loss for part, q in zip(self.parts, made) for name, loss in q.losses.items()}
        return Quantized(vectors, codes, losses, torch.cat([q.usage for q in made]))

    def unquantized(self, z: Tensor) -> Tensor:
        self.inward(z)  # checks the shape
        return torch.cat([book.unquantized(half) for book, half in zip(self._books(), self._halves(z.float()))], 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """As of every codebook: a cell below 0 leaves its half at 0."""
        self.check_codes(codes)
        return torch.cat([book.lookup(codes[:, k : k + 1]) for k, book in enumerate(self._books())], 1)

    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        given = self.all_unknown(vectors) if given is None else given
        halves = zip(self._books(), self._halves(vectors), given.split(1, 1))
        return torch.cat([book.nearest(half, here) for book, half, here in halves], 1)
