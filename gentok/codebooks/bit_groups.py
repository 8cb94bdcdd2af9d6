"""Sub-codes: a code of b bits as K codes of b / K bits each, an exact re-indexing (ELM, Wu et al., arXiv
2410.16257, section 3.2).

    bits b_0 .. b_(b-1);    code of level k = sum_i 2^i b_(k b/K + i),  i < b / K

A vocabulary of 2^20 is out of reach of a softmax; two of 2^10 are not. Level 0 has the lowest bits; no level
is coarser than another, so a prefix of the levels is no code of its own (nested_levels is false). `BitGroups`
shows an LFQ in this way; bae.py has the same order of bits. The projections stand around the whole view; the
one behind has no bias, so that absent levels add nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import BaseCodebook, fill
from gentok.codebooks.lfq import LFQ
from gentok.codebooks.search import TABLE_LIMIT, nearest_rows
from gentok.rng import RowRNG
from gentok.settings import Count, PositiveInt
from gentok.types import ABSENT, UNKNOWN, Quantized

__all__ = ["BitGroups", "bits_per_level", "from_bits", "to_bits", "without_unused_levels"]


def bits_per_level(bits: int, levels: int) -> int:
    """b / K. Raises ValueError where K does not divide b, or a level is too large for an int64."""
    if bits < 1 or levels < 1 or bits % levels or bits // levels > 62:
        raise ValueError(f"{bits} bits in {levels} sub-codes: choose levels that divide bits, with at most 62 bits in each")
    return bits // levels


def to_bits(codes: Tensor, each: int) -> Tensor:
    """codes int64 [B, K, N], all >= 0 -> bool [B, N, K * each], the lowest bit of level 0 first."""
    place = torch.arange(each, device=codes.device)
    return ((codes.transpose(1, 2)[..., None] >> place) & 1).bool().flatten(2)


def from_bits(bits: Tensor, each: int) -> Tensor:
    """bool [B, N, K * each] -> codes int64 [B, K, N]."""
    place = torch.arange(each, device=bits.device)
    return (bits.unflatten(2, (-1, each)).long() << place).sum(3).transpose(1, 2)


def without_unused_levels(codes: Tensor, bits: Tensor, n_levels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Leaves out the levels that a row does not use.

    Args:
        codes: int64 [B, K, N].
        bits: float [B, N, K * each], the values of their bits.
        n_levels: int64 [B], how many levels each row uses; None: all.

    Returns:
        Both, ABSENT and 0 in the levels that are left out.
    """
    if n_levels is None:
        return codes, bits
    levels = codes.shape[1]
    used = torch.arange(levels, device=n_levels.device)[:, None] < n_levels[:, None, None]
    return codes.masked_fill(~used, ABSENT), bits * used.transpose(1, 2).repeat_interleave(bits.shape[2] // levels, 2)


class BitGroups(BaseCodebook, id="codebook/bit_groups"):
    """The codes of an LFQ as K = levels codes of bits / levels bits."""

    def __init__(self, codebook: LFQ, levels: Count, width: PositiveInt | None = None):
        """Takes the codebook as it is.

        Args:
            codebook: an LFQ without projections of its own.
            levels: K, a divisor of its bits.
            width: channels in and out where they differ from its bits (linear projections).

        Raises:
            ValueError: another codebook, or levels that do not divide its bits.
        """
        if not isinstance(codebook, LFQ):
            raise ValueError(f"BitGroups takes the codebook lfq; got {type(codebook).__name__}")
        self.refuse_projections(codebook)
        each = bits_per_level(codebook.bits, levels)
        super().__init__(codebook.bits, width, (1 << each,) * levels, out_bias=False)
        self.each, self.book = each, codebook

    def _values(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> float32 [B, N, bits]: -1 or 1, and 0 where a code is below 0."""
        signs = to_bits(codes.clamp(min=0), self.each).float() * 2 - 1
        return signs * (codes >= 0).transpose(1, 2).repeat_interleave(self.each, 2)

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        q = self.book(self.inward(z).transpose(1, 2), n_levels=None if n_levels is None else (n_levels > 0).long(), rng=rng)
        values = q.vectors.transpose(1, 2)
        codes, values = without_unused_levels(from_bits(values.detach() > 0, self.each), values, n_levels)
        return self.quantized(self.outward(values), codes, q.losses)

    def lookup(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self.outward(self._values(codes))

    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """As of every codebook, but all UNKNOWN levels of a cell are found together. With projections all
        choices are written out."""
        given = self.all_unknown(vectors) if given is None else given
        rest = (vectors.float() - self.lookup(given)).transpose(1, 2)
        if not self.projected:
            return fill(from_bits(rest > 0, self.each), given)
        unknown = (given == UNKNOWN).transpose(1, 2)
        found = torch.zeros_like(given).transpose(1, 2).contiguous()
        for pattern in unknown.reshape(-1, self.levels).unique(dim=0):
            if pattern.any():
                cells = (unknown == pattern).all(2)
                choices = self._choices(pattern)
                index = nearest_rows(rest[cells].double(), self.lookup(choices)[0].T.double())
                found[cells] = choices[0].T[index]
        return fill(found.transpose(1, 2), given)

    def _choices(self, pattern: Tensor) -> Tensor:
        """All codes int64 [1, K, n] of the levels where pattern bool [K] is true; the others are ABSENT."""
        bits = int(pattern.sum()) * self.each
        if 1 << bits > TABLE_LIMIT:
            raise ValueError(f"nearest among 2^{bits} rows behind a projection is too much; use a codebook without width, or a smaller one")
        number = torch.arange(1 << bits, device=pattern.device)
        codes = torch.full((1, self.levels, len(number)), ABSENT, device=pattern.device)
        for i, k in enumerate(pattern.nonzero()[:, 0].tolist()):
            codes[0, k] = (number >> (i * self.each)) & ((1 << self.each) - 1)
        return codes
