"""The tables of a pretrained residual quantizer as a codebook of gentok: EnCodec's, DAC's, Mimi's, of whichever library.

    level      y = inward(r);   code = argmin_v |y - row_v| (by angle where `by_angle`);   q = outward(row);   r <- r - q
    branch     x = project_in(z);  levels one after the other, from r = x;   project_out(sum of q)
    codebook   the branches side by side, each on the same z, and their sum: one for EnCodec and DAC, two for Mimi

For fine-tuning: the decoder's gradient goes straight through the sum of a branch, or through each level's own projections where levels have
them (as in gentok/codebooks/projected_residual.py); tables that are parameters learn by the codebook loss. Tables that their library
averages (EnCodec, Mimi) stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.base import BaseCodebook, fill, float32, nearest_rows, share_used, straight_through
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Quantized

__all__ = ["Branch", "Level", "Levels"]


class Level(nn.Module):
    """One table: a layer of the library's quantizer. A subclass says where its parts are.

    Attributes:
        by_angle: whether rows are compared by angle.
        projected: whether the level has projections of its own.
    """

    by_angle = False
    projected = False

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    @property
    def rows(self) -> Tensor:
        """float [V, d], with gradient where it is a parameter."""
        raise NotImplementedError

    def inward(self, x: Tensor) -> Tensor:
        """float [B, D, N] -> [B, d, N]."""
        return x

    def outward(self, y: Tensor) -> Tensor:
        """float [B, d, N] -> [B, D, N]."""
        return y

    def compared(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.by_angle else x

    def found(self, y: Tensor) -> Tensor:
        """y float [B, d, N] -> codes int64 [B, N]."""
        flat = y.detach().transpose(1, 2).reshape(-1, y.shape[1])
        return nearest_rows(self.compared(flat), self.compared(self.rows.detach())).view(len(y), -1)

    def looked_up(self, codes: Tensor) -> Tensor:
        """codes int64 [B, N], 0 or more -> rows float [B, d, N]."""
        return F.embedding(codes, self.rows).transpose(1, 2)


class Branch(nn.Module):
    """Levels that code what those before them left over."""

    def __init__(self, levels: Sequence[Level], project_in: nn.Module | None = None, project_out: nn.Module | None = None):
        """
        Args:
            levels: coarse to fine.
            project_in: float [B, D, N] -> [B, d, N]; None: none.
            project_out: float [B, d, N] -> [B, D, N], without a bias, since absent levels add nothing; None: none.
        """
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.project_in, self.project_out = project_in or nn.Identity(), project_out or nn.Identity()
        self.projected = any(level.projected for level in levels)


class Levels(BaseCodebook):
    """Branches side by side; K = all their levels, in their order."""

    invertible = False
    nested_levels = True

    def __init__(self, branches: Sequence[Branch], width: int, commitment: float = 1.0, summed: bool = False):
        """
        Args:
            branches: one or more.
            width: D, channels in and out.
            commitment: weight of the commitment loss.
            summed: losses are summed over the levels (DAC) instead of averaged.
        """
        levels = [level for branch in branches for level in branch.levels]
        super().__init__(width, None, [len(level.rows) for level in levels])
        self.levels, self.commitment, self.summed = len(levels), commitment, summed
        self.branches = nn.ModuleList(branches)
        self.has_nearest = len(branches) == 1

    def _places(self) -> list[tuple[Branch, list[tuple[int, Level]]]]:
        """The branches with their levels, numbered through."""
        places, k = [], 0
        for branch in self.branches:
            places.append((branch, list(enumerate(branch.levels, k))))
            k += len(branch.levels)
        return places

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, width, N] -> Quantized. n_levels int64 [B]: the first levels of each row to use; the others are ABSENT."""
        z = self.inward(z).transpose(1, 2)
        vectors, codes, losses = torch.zeros_like(z), [], {"commitment": z.new_zeros(()), "codebook": z.new_zeros(())}
        for branch, levels in self._places():
            x = branch.project_in(z)
            total, residual = torch.zeros_like(x), x
            for k, level in levels:
                here = z.new_ones(len(z)) if n_levels is None else (n_levels > k).to(z)
                y = level.inward(residual)
                found = level.found(y)
                rows = level.looked_up(found)
                error = ((y - rows.detach()).square().mean((1, 2)) * here).mean()
                losses["commitment"] = losses["commitment"] + self.commitment * error
                if rows.requires_grad:
                    losses["codebook"] = losses["codebook"] + ((rows - y.detach()).square().mean((1, 2)) * here).mean()
                value = level.outward(straight_through(rows, y)) if level.projected else rows.detach()
                value = value * here[:, None, None]
                total, residual = total + value, self.remainder(residual, value)
                codes.append(found.masked_fill(here[:, None] == 0, ABSENT))
            vectors = vectors + branch.project_out(total if branch.projected else straight_through(total, x))
        if not self.summed:
            losses = {name: loss / self.levels for name, loss in losses.items()}
        usage = torch.stack([share_used(c, v) for c, v in zip(codes, self.vocab_sizes)])
        return Quantized(vectors, torch.stack(codes, 1), losses, usage)

    def remainder(self, residual: Tensor, value: Tensor) -> Tensor:
        """What a level leaves to the next one."""
        return residual - value.detach()

    def _added(self, level: Level, codes: Tensor) -> Tensor:
        """What a level's codes int64 [B, N] add in its branch; those below 0 nothing."""
        return level.outward(level.looked_up(codes.clamp(min=0))).masked_fill((codes < 0)[:, None], 0.0)

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, N]; absent levels add nothing."""
        self.check_codes(codes)
        parts = []
        for branch, levels in self._places():
            parts.append(branch.project_out(sum(self._added(level, codes[:, k]) for k, level in levels)))
        return sum(parts)

    @float32
    @torch.no_grad()
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, width, N] -> codes [B, K, N], greedily; fills only the UNKNOWN cells of `given`. Raises TypeError where
        several branches quantise the same latent: their sum has no nearest codes."""
        if not self.has_nearest:
            raise TypeError("quantizers in parallel have no nearest codes: their sum does not say which of them gave what")
        if given is None:
            given = torch.full((len(vectors), self.levels, vectors.shape[2]), UNKNOWN, dtype=torch.int64, device=vectors.device)
        residual, levels = vectors.float() - self.lookup(given), []
        for k, level in self._places()[0][1]:
            flat = residual.transpose(1, 2).reshape(-1, self.width)
            found = nearest_rows(flat.double(), self.table(k).double()).view(len(vectors), -1)
            levels.append(fill(found, given[:, k]))
            residual = residual - self._added(level, torch.where(given[:, k] == UNKNOWN, found, ABSENT))
        return torch.stack(levels, 1)

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, width]: the rows as lookup adds them."""
        codes = torch.full((1, self.levels, self.vocab_sizes[level]), ABSENT, dtype=torch.int64, device=self.device)
        codes[0, level] = torch.arange(self.vocab_sizes[level], device=self.device)
        return self.lookup(codes)[0].T
