"""The binary autoencoder's codebook: sampled bits, and a sum of learnt vectors (BAE of ELM, Wu et al., arXiv 2410.16257; after Binary
Latent Diffusion, Wang et al., arXiv 2304.04820).

    p = sigmoid(A z + a);    b_i ~ BAE(p_i) in training,  b_i = [p_i > 1/2] otherwise;    vector = sum_i b_i e_i
    straight-through: the gradient of b is that of p.    loss = entropy * mean_i H(p_i), nothing by default

Every one of the 2^bits codes can be used by construction. Token models see K = levels sub-codes of bits / levels bits (bits.py has the
order). The vectors e_i are learnt freely and may depend on one another, and a code of all zeros is the vector 0 whether present or not: no
nearest code exists, and `nearest` says so.

Deviation: the published penalty has weight 0 and applies the sigmoid twice; `entropy` here is the bits' entropy in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import TABLE_LIMIT, BaseCodebook, float32, no_autocast, row_mean, share_used, straight_through
from gentok.codebooks.bit_groups import bits_per_level, from_bits, levels_kept, to_bits
from gentok.rng import RowRNG
from gentok.types import ABSENT, Quantized

__all__ = ["BAE"]


class BAE(BaseCodebook, id="codebook/bae"):
    """bits: of a code. width: channels in and out. levels: K, sub-codes of bits / levels bits. entropy: weight of the bits' entropy (above
    0: towards sure bits)."""

    invertible = False
    has_nearest = False

    def __init__(self, bits: int, width: int, levels: int = 1, entropy: float = 0.0):
        each = bits_per_level(bits, levels)
        super().__init__(width, None, (1 << each,) * levels)
        self.bits, self.levels, self.each, self.entropy = bits, levels, each, entropy
        self.logits = nn.Linear(width, bits)
        self.weight = nn.Parameter(torch.empty(bits, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.logits.reset_parameters()
        self.weight.normal_(std=self.bits**-0.5)

    def _sum(self, bits: Tensor) -> Tensor:
        """float [..., bits] -> float32 [..., width]."""
        return bits.contiguous() @ self.weight.float()

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of K levels. n_levels int64 [B]: the first levels of each row to use; the others are ABSENT.
        Bits are sampled in training where `noise` is given, else the likelier value is taken."""
        x = self.inward(z)
        logits = F.linear(x, self.logits.weight.float(), self.logits.bias.float())
        p = torch.sigmoid(logits)
        if self.training and rng is not None:
            hard = rng.fork("bits").uniform(*p.shape[1:]).to(p.device) < p.detach()
        else:
            hard = logits.detach() > 0
        codes, bits = from_bits(hard, self.each), straight_through(hard.to(p), p)
        kept = None if n_levels is None else levels_kept(n_levels, self.levels)
        if kept is not None:
            codes = codes.masked_fill(~kept, ABSENT)
            bits = bits * kept.transpose(1, 2).repeat_interleave(self.each, 2)
        losses = {}
        if self.entropy:
            nats = F.softplus(logits) - logits * p
            losses["entropy"] = self.entropy * row_mean(nats, None if n_levels is None else n_levels > 0)
        usage = torch.stack([share_used(codes[:, k], v) for k, v in enumerate(self.vocab_sizes)])
        return Quantized(self._sum(bits).transpose(1, 2), codes, losses, usage)

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N], with gradient to the vectors of the bits; cells below 0 add nothing."""
        self.check_codes(codes)
        return self._sum(to_bits(codes.clamp(min=0), self.each).float()).transpose(1, 2)

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """Raises TypeError: sums of learnt vectors have no nearest code."""
        raise TypeError("BAE has no nearest code (its vectors are sums of learnt ones): take a codebook such as lookup_free or vq")

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them. Raises ValueError where there are too many to write out."""
        if self.each > TABLE_LIMIT.bit_length() - 1:
            raise ValueError(f"a table of 2^{self.each} rows is too large to write out; choose more levels")
        device = self.weight.device
        codes = torch.zeros(1, self.levels, 1 << self.each, dtype=torch.int64, device=device)
        codes[0, level] = torch.arange(1 << self.each, device=device)
        with no_autocast(device):
            return self._sum(to_bits(codes, self.each).float())[0]
