"""Sub-codes: a code of b bits as K codes of b / K bits each, an exact re-indexing (ELM, Wu et al., arXiv 2410.16257, section 3.2).

    bits b_0 .. b_(b-1);    code of level k = sum_i 2^i b_(k b/K + i),  i < b / K

A vocabulary of 2^20 is out of reach of a softmax; two of 2^10 are not. Level 0 has the lowest bits; no level is coarser than another, so a
prefix of the levels is no code of its own (nested_levels is false). `Bits` shows a lookup_free codebook in this way; bernoulli.py has the
same order of bits. The projections stand around the whole view; the one behind has no bias, so that absent levels add nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.codebooks.base import TABLE_LIMIT, BaseCodebook, fill, float32, nearest_rows, no_autocast, share_used
from gentok.codebooks.lfq import LFQ
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Quantized

__all__ = ["BitGroups", "bits_per_level", "from_bits", "levels_kept", "to_bits"]


def bits_per_level(bits: int, levels: int) -> int:
    """b / K. Raises ValueError where K does not divide b or a level would be too large for an int64."""
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


def levels_kept(n_levels: Tensor, levels: int) -> Tensor:
    """n_levels int64 [B] -> bool [B, levels, 1]: the levels that each row uses."""
    return torch.arange(levels, device=n_levels.device)[:, None] < n_levels[:, None, None]


class BitGroups(BaseCodebook, id="codebook/bit_groups"):
    """The codes of a LFQ codebook as K = levels codes of bits / levels bits.

    codebook: a LFQ without projections of its own. width: channels in and out where they differ from its bits.
    """

    def __init__(self, codebook: LFQ, levels: int, width: int | None = None):
        if not isinstance(codebook, LFQ) or codebook.projected:
            raise ValueError(
                f"Bits views the bits of a lookup_free codebook without width; got {type(codebook).__name__} "
                f"of width {getattr(codebook, 'width', None)}: give width to Bits"
            )
        each = bits_per_level(codebook.bits, levels)
        super().__init__(codebook.bits, width, (1 << each,) * levels, out_bias=False)
        self.levels, self.each, self.book = levels, each, codebook

    def _values(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> float32 [B, N, bits]: -1 or 1, and 0 where a code is below 0."""
        signs = to_bits(codes.clamp(min=0), self.each).float() * 2 - 1
        return signs * (codes >= 0).transpose(1, 2).repeat_interleave(self.each, 2)

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of K levels. n_levels int64 [B]: the first levels of each row to use; the others are ABSENT."""
        x = self.inward(z)
        q = self.book(x.transpose(1, 2), n_levels=None if n_levels is None else (n_levels > 0).long(), rng=rng)
        values = q.vectors.transpose(1, 2)
        codes = from_bits(values.detach() > 0, self.each)
        if n_levels is not None:
            kept = levels_kept(n_levels, self.levels)
            codes = codes.masked_fill(~kept, ABSENT)
            values = values * kept.transpose(1, 2).repeat_interleave(self.each, 2)
        usage = torch.stack([share_used(codes[:, k], v) for k, v in enumerate(self.vocab_sizes)])
        return Quantized(self.outward(values).transpose(1, 2), codes, q.losses, usage)

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N]; cells below 0 add nothing."""
        self.check_codes(codes)
        return self.outward(self._values(codes)).transpose(1, 2)

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N] -> codes int64 [B, K, N]: the nearest choice of all UNKNOWN levels of a cell together, once what is
        given is subtracted. With projections all choices are written out; ValueError where they are too many."""
        if given is None:
            given = torch.full((len(vectors), self.levels, vectors.shape[2]), UNKNOWN, dtype=torch.int64, device=vectors.device)
        rest = (vectors.float() - self.lookup(given)).transpose(1, 2)
        if not self.projected:
            return fill(from_bits(rest > 0, self.each), given)
        masked_cells = (given == UNKNOWN).transpose(1, 2)
        found = torch.zeros_like(given).transpose(1, 2).contiguous()
        for pattern in masked_cells.reshape(-1, self.levels).unique(dim=0):
            if pattern.any():
                cells = (masked_cells == pattern).all(2)
                choices = self._choices(pattern)
                index = nearest_rows(rest[cells].double(), self.outward(self._values(choices)).double()[0])
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

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them. Raises ValueError where there are too many to write out."""
        device = self.device
        pattern = torch.arange(self.levels, device=device) == level
        with no_autocast(device):
            return self.outward(self._values(self._choices(pattern)))[0]
