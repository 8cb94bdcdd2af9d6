"""Residual quantization: every level codes what the levels before it left over (Zeghidour et al., SoundStream, arXiv 2107.03312;
Lee et al., RQ-VAE, arXiv 2203.01941).

    r_0 = z,    q_k = book_k(r_k),    r_{k+1} = r_k - sg q_k,    vectors = z + sg(sum_k q_k - z)

One straight-through over the sum, and detached values in the subtraction: with a straight-through inside, r_{k+1} has no gradient to the
encoder, and every commitment but the first is dead.

Dropout of levels, so that any number of them is a valid code: `level_dropout` is the probability that a row keeps only its first n
levels, n uniform on 1..K; `batch_dropout` the same for the whole batch at once. The draw of a batch comes from the sum, over the rows of
all processes, of one 64-bit word each: uniform, the same everywhere, and the same however the batch is spread.

Losses are means over the cells that were kept: of the whole batch, in the mean over processes. Books that discard the size of what they
code (VQ with normalize) lose that of the residual: give them normalize=false. The projections stand around all levels; the one behind has
no bias, since a bias would be added although no level is present.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, fill, float32, nearest_rows, no_autocast, straight_through
from gentok.distributed import all_sum, world_size
from gentok.interfaces import Codebook
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Quantized

__all__ = ["ResidualCodebook"]


class ResidualCodebook(BaseCodebook, id="codebook/residual"):
    """K = levels copies of a codebook of one level, each with fresh parameters; one table for all of them with `shared` (RQ-VAE).

    codebook: the book to copy, without projections of its own. width: channels in and out where they differ from the book's (linear
    projections; the one before has a bias unless in_bias is false). level_dropout, batch_dropout: probabilities, used in training where
    `forward` is given noise and no `n_levels`.
    """

    invertible = False
    nested_levels = True
    own_projections = False
    """Whether every level has projections of its own (ProjectedResidual)."""

    def __init__(
        self,
        codebook: Codebook,
        levels: int,
        width: int | None = None,
        level_dropout: float = 0.0,
        batch_dropout: float = 0.0,
        shared: bool = False,
        in_bias: bool = True,
    ):
        if codebook.levels != 1:
            raise ValueError(f"Residual takes a codebook of one level; {type(codebook).__name__} has {codebook.levels}")
        if getattr(codebook, "projected", False) and not self.own_projections:
            raise ValueError(
                "Residual has its projections around all levels: build its codebook without width "
                f"(it has width={codebook.width}, dim={codebook.dim}) and give width to Residual"
            )
        if levels < 1:
            raise ValueError(f"Residual needs at least one level; got {levels}")
        super().__init__(codebook.width, width, codebook.vocab_sizes * levels, out_bias=False, in_bias=in_bias)
        self.levels, self.shared = levels, shared
        self.level_dropout, self.batch_dropout = level_dropout, batch_dropout
        self.books = nn.ModuleList([copy.deepcopy(codebook) for _ in range(1 if shared else levels)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for book in self.books:
            book.reset_parameters()

    def book(self, level: int) -> Codebook:
        return self.books[0 if self.shared else level]

    def _draw_n_levels(self, batch: int, rng: RowRNG) -> Tensor:
        """int64 [B]: how many levels each row keeps."""
        levels = self.levels
        u = rng.fork("levels").uniform(2)
        cut = torch.where(u[:, 0] < self.level_dropout, 1 + (u[:, 1] * levels).long(), levels)
        if self.batch_dropout > 0:
            words = all_sum(rng.fork("batch").words(2).sum(0))
            u = ((words >> 12) & ((1 << 52) - 1)).double() / (1 << 52)
            cut = cut.clamp(max=torch.where(u[0] < self.batch_dropout, 1 + (u[1] * levels).long(), levels))
        return cut

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, M] -> Quantized of K levels. n_levels int64 [B]: the first levels of each row to use; the others are ABSENT."""
        x = self.inward(z).transpose(1, 2)
        if n_levels is None and rng is not None and self.training and (self.level_dropout > 0 or self.batch_dropout > 0):
            n_levels = self._draw_n_levels(len(z), rng).to(z.device)
        total, residual = torch.zeros_like(x), x
        codes, usage, losses, weights = [], [], {}, x.new_zeros(())
        for k in range(self.levels):
            here = None if n_levels is None else (n_levels > k).long()
            q = self.book(k)(residual, n_levels=here, rng=None if rng is None else rng.fork(k))
            value = q.vectors.detach()
            total, residual = total + value, residual - value
            codes.append(q.codes)
            usage.append(q.usage)
            weight = x.new_tensor(len(x)) if here is None else here.sum().to(x)
            weights = weights + weight
            for name, loss in q.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * weight
        if self.training and n_levels is not None:  # processes that kept fewer cells count less: their mean is that of the whole batch
            weights = all_sum(weights) / world_size()
        losses = {name: loss / weights.clamp(min=1 / world_size()) for name, loss in losses.items()}
        vectors = self.outward(straight_through(total, x).transpose(1, 2)).transpose(1, 2)
        return Quantized(vectors, torch.cat(codes, 1), losses, torch.cat(usage))

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N]; cells below 0 add nothing."""
        self.check_codes(codes)
        total = codes.new_zeros(codes.shape[0], self.dim, codes.shape[2], dtype=torch.float32)
        for k in range(self.levels):
            total = total + self.book(k).lookup(codes[:, k : k + 1])
        return self.outward(total.transpose(1, 2)).transpose(1, 2)

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N] -> codes int64 [B, K, N], greedily, coarse to fine. The cells of `given` that are 0 or more are kept
        and subtracted first, UNKNOWN ones filled, ABSENT ones stay absent."""
        if given is None:
            given = torch.full((len(vectors), self.levels, vectors.shape[2]), UNKNOWN, dtype=torch.int64, device=vectors.device)
        residual = vectors.float() - self.lookup(given)
        levels = []
        for k in range(self.levels):
            here = given[:, k : k + 1]
            if self.projected:
                x = residual.transpose(1, 2).reshape(-1, self.width)
                found = nearest_rows(x.double(), self.table(k).double()).view_as(here)
            else:
                found = self.book(k).nearest(residual)
            levels.append(fill(found, here))
            fresh = torch.where(here == UNKNOWN, found, ABSENT)
            added = self.book(k).lookup(fresh)
            residual = residual - self.outward(added.transpose(1, 2)).transpose(1, 2)
        return torch.cat(levels, 1)

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them."""
        rows = self.book(level).table()
        with no_autocast(rows.device):
            return self.outward(rows)
