"""The first part of a trained tokenizer's code as a code of its own: what a generator then models, and nothing behind it.

Codes whose every prefix decodes (TokenSpec.prefixes) are usually modelled by fewer tokens than they have: MusicGen and its like take the
first 4 of EnCodec's 32 levels (arXiv 2306.05284, section 3), FlexTok's generators as many of its ordered tokens as the image's
condition needs (arXiv 2502.13967, section 4).

    nested levels    codes[:, :keep]        of a residual codebook: fewer bits per second
    a nested line    codes[:, :, :keep]     of FlexTok: fewer tokens per image

A pyramid's scales are no such prefix: its last one is what its decoder takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gentok.errors import counted
from gentok.interfaces import Codebook, Tokenizer
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.tokenizers.inner import frozen
from gentok.types import ABSENT, UNKNOWN, Batch, Line, TokenizerOutput, Tokens, TokenSpec

__all__ = ["FirstLevels", "Prefix"]


class Prefix(Tokenizer, id="tokenizer/prefix"):
    """media -> the first `keep` levels (or tokens) of what a whole tokenizer encodes it to -> media."""

    modality = None
    needs_training = False
    inner = {"whole": lambda spec: {}}

    def __init__(self, whole: Tokenizer | Mapping[str, Any], keep: PositiveInt, media_shape: Sequence[PositiveInt] | None = None):
        """
        Args:
            whole: a built tokenizer whose prefixes are codes; in training {ckpt: BUNDLE}. It is frozen, and is saved with this one.
            keep: 1 to its number of levels, or of tokens in a nested line.
            media_shape: of the data, whose channels must be the whole tokenizer's.

        Raises:
            ValueError: the code has no such prefix, or the data have other channels.
        """
        super().__init__()
        if isinstance(whole, Mapping):
            raise ValueError("prefix cuts the code of a trained tokenizer: tokenizer.whole.ckpt=BUNDLE")
        spec: TokenSpec = whole.spec
        line = isinstance(spec.grid, Line) and spec.grid.nested
        most = spec.levels if spec.nested_levels else spec.prefixes if line else 0
        if not most:
            kind = f"{counted(spec.levels, 'level')} on a {type(spec.grid).__name__.lower()}"
            raise ValueError(f"this code ({kind}) has no prefix that is a code: take one of nested levels (residual) or of a nested line")
        if not isinstance(keep, int) or not 1 <= keep <= most:
            raise ValueError(f"tokenizer.keep={keep}: this tokenizer has {'levels' if spec.nested_levels else 'tokens'} 1 to {most}")
        channels = spec.media_shape[0]
        if media_shape and media_shape[0] != channels:
            raise ValueError(f"the tokenizer inside takes media of {counted(channels, 'channel')}, the data have {media_shape[0]}")
        self.whole, self.keep = frozen(whole), keep
        self.generative = whole.generative
        cut: dict[str, Any] = {"encode_fingerprint": "", "decode_fingerprint": ""}
        if spec.nested_levels:
            cut |= {"vocab_sizes": spec.vocab_sizes[:keep], "strides": None if spec.strides is None else spec.strides[:keep]}
        else:
            cut |= {"grid": replace(spec.grid, n=keep)}
        self.spec = replace(spec, **cut)

    @property
    def codebook(self) -> Codebook | None:
        """That of the whole tokenizer, of the levels that are kept."""
        codebook = self.whole.codebook
        return FirstLevels(codebook, self.keep) if self.spec.nested_levels and codebook is not None else codebook

    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None, **options: Any) -> Tokens:
        """media float [B, C, ...] -> Tokens [B, keep, N], or [B, K, keep] of a line. options: those of the whole tokenizer."""
        tokens = self.whole.encode(media, lengths, rng, **options)
        codes = tokens.codes[:, : self.keep] if self.spec.nested_levels else tokens.codes[:, :, : self.keep]
        return Tokens(codes.contiguous(), self._of(codes, tokens.spec), tokens.lengths)

    def decode(self, tokens: Tokens, rng: RowRNG | None = None, **options: Any) -> Tensor:
        """Tokens to media, as the whole tokenizer decodes them where the rest is ABSENT.

        Args:
            tokens: [B, keep, N], or [B, K, keep] of a line.
            rng, options: of the whole tokenizer.

        Returns:
            float32 [B, C, ...] in [-1, 1].

        Raises:
            ValueError: the tokens are another tokenizer's, or of another number.
        """
        self.check_tokens(tokens, type(self.spec.grid))
        if isinstance(self.spec.grid, Line) and tokens.codes.shape[2] != self.spec.positions:
            raise ValueError(f"this prefix has {self.spec.positions} tokens on its line; got {tokens.codes.shape[2]}")
        whole: TokenSpec = self.whole.spec
        if self.spec.nested_levels:
            codes, changed = _more_levels(tokens.codes, whole.levels), {"vocab_sizes": whole.vocab_sizes, "strides": whole.strides}
        else:
            codes = F.pad(tokens.codes, (0, whole.positions - tokens.codes.shape[2]), value=ABSENT)
            changed = {"grid": whole.grid}
        return self.whole.decode(Tokens(codes, replace(tokens.spec, **changed), tokens.lengths), rng, **options)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """Raises ValueError: there is nothing to train."""
        raise ValueError("a prefix has nothing to train: train the whole tokenizer (task=tokenizer), then a generator (task=generator)")

    def _of(self, codes: Tensor, spec: TokenSpec) -> TokenSpec:
        """Of so many positions, and of media as large as theirs are."""
        grid = self.spec.grid
        if self.spec.nested_levels and grid.positions not in (None, codes.shape[2]):
            grid = spec.grid
        return replace(self.spec, grid=grid, media_shape=spec.media_shape)


class FirstLevels(Codebook):
    """The first levels of a codebook whose levels add up: `lookup`, `nearest` and `table` of these alone."""

    nested_levels = True
    invertible = False  # as residual codebooks are: a sum's levels may be found in another way than they were written

    def __init__(self, codebook: Codebook, levels: int):
        """
        Args:
            codebook: of nested levels.
            levels: how many, the first ones.
        """
        super().__init__()
        self.book, self.levels = codebook, levels
        self.vocab_sizes = tuple(codebook.vocab_sizes[:levels])
        self.in_width, self.width, self.parts = codebook.in_width, codebook.width, codebook.parts

    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, levels, N] -> vectors float32 [B, D, N]; absent levels add nothing."""
        return self.book.lookup(_more_levels(codes, self.book.levels))

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, D, N] -> codes int64 [B, levels, N]; with `given`, only its UNKNOWN cells."""
        if given is not None:
            given = _more_levels(given, self.book.levels, UNKNOWN)
        return self.book.nearest(vectors, given)[:, : self.levels]

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, D]. Raises ValueError on a level that is not kept."""
        if level >= self.levels:
            raise ValueError(f"table({level}): this codebook has the first {self.levels} levels, 0 to {self.levels - 1}")
        return self.book.table(level)


def _more_levels(codes: Tensor, levels: int, value: int = ABSENT) -> Tensor:
    """[B, any, N] -> [B, levels, N]."""
    return F.pad(codes, (0, 0, 0, levels - codes.shape[1]), value=value)
