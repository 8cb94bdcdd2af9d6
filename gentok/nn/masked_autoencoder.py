"""The network of MAR (Li et al., arXiv 2406.11838, section 3.4): an encoder of the known vectors, a decoder of all places, as in MAE
(He et al., arXiv 2111.06377).

    encoder   [P copies of the condition ; known vectors], each with its place, normalised
    decoder   the encoder's outputs at their places, one learned vector at all others

Both see everything in both directions. The copies (the buffer) make the encoder's sequence longer where little is known.

Rows may know different numbers of vectors: shorter ones are padded, and the padding is not seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentok.nn.transformer import Transformer, initialise
from gentok.rng import RowRNG

__all__ = ["MaskedAutoencoder"]


class MaskedAutoencoder(nn.Module):
    """x float [B, N, C] and which of its vectors are known -> float [B, N, D].

    Args:
        channels: C.
        positions: N.
        width: D.
        depth: blocks of each half.
        heads: of attention.
        hidden: width of the feed-forward parts.
        buffer: P.
        rate: of dropout, of both branches of a block.
    """

    def __init__(self, channels: int, positions: int, width: int, depth: int, heads: int, hidden: int, buffer: int, rate: float):
        super().__init__()
        self.buffer = buffer
        options = {"causal": False, "activation": "gelu", "qk_norm": False, "dropout": rate, "bias": True, "norm": "layer"}
        self.stem, self.norm, self.middle = nn.Linear(channels, width), nn.LayerNorm(width, eps=1e-6), nn.Linear(width, width)
        self.encoder, self.decoder = (Transformer(width, depth, heads, hidden, **options) for _ in range(2))  # type: ignore[arg-type]
        self.places = nn.ModuleList(nn.Embedding(n, width) for n in (buffer + positions, buffer + positions, positions))
        self.masked = nn.Parameter(torch.empty(width).normal_(std=0.02))
        for part in (self.stem, self.middle, self.places):
            initialise(part)

    def forward(self, x: Tensor, known: Tensor, vector: Tensor | None, rng: RowRNG | None = None) -> Tensor:
        """x float [B, N, C], anything where it is not known; known bool [B, N]; vector float [B, D], the embedded condition; rng: for
        dropout, None: none -> float [B, N, D], also where it is known."""
        batch, dtype = len(x), self.stem.weight.dtype
        h = self.stem(torch.where(known[..., None], x, 0.0).to(dtype))
        begin = h.new_zeros(batch, 1, h.shape[2]) if vector is None else vector[:, None].to(h.dtype)
        h = self.norm(torch.cat((begin.expand(-1, self.buffer, -1), h), 1) + self.places[0].weight)
        there = torch.cat((known.new_ones(batch, self.buffer), known), 1)
        most = 0 if known.is_meta else int(known.sum(1).max())  # of sizes alone nothing is known
        order = (~there).to(torch.int8).argsort(dim=1, stable=True)[:, : self.buffer + most]  # the known ones first
        seen = there.gather(1, order)
        mask = None if not most or bool(seen.all()) else seen[:, None, None]
        every = order[..., None].expand(-1, -1, h.shape[2])
        h = self.middle(self.encoder(h.gather(1, every), mask=mask, rng=rng))
        h = torch.where(seen[..., None], h, self.masked.to(h.dtype))
        all_masked = self.masked.to(h.dtype).expand(batch, there.shape[1], -1)
        h = all_masked.scatter(1, every, h) + self.places[1].weight
        return self.decoder(h, rng=rng)[:, self.buffer :] + self.places[2].weight
