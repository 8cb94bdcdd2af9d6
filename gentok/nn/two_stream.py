"""Two streams in one pass: content rows hold cells, query rows predict them (Yang et al., XLNet, arXiv
1906.08237, section 2.3).

Every cell has a rank. Rank 0 is the visible block, which attends fully to itself; positive ranks are an
order. A content row sees the content of ranks up to its own, a query row the content of lower ranks and
itself, which knows no more than its place. So the output at a query row is the distribution of its cell given
the cells before it, and one pass gives those of all cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.nn.constants import Constants
from gentok.types import TokenSpec

__all__ = ["Cells", "two_stream_mask"]


class Cells:
    """The C cells that a spec has, from left to right, at a position the coarser level first.

    A table of embeddings has a row for every code of every level, then one per level for "absent" and one for
    "asked".

    Attributes:
        level: int64 [C] on the CPU.
        position: int64 [C] on the CPU.
        tables: Constants level, position; start, absent and asked: rows of the table, all int64 [C]; index
            int64 [K N]: the number among the C cells of each of a row's K N.
    """

    def __init__(self, spec: TokenSpec):
        codes, levels = sum(spec.vocab_sizes), spec.levels
        with torch.device("cpu"):
            position, level = self.position, self.level = spec.exists().T.nonzero().T
            starts = torch.tensor([sum(spec.vocab_sizes[:k]) for k in range(levels)])
            index = torch.zeros(levels * spec.positions, dtype=torch.int64)
            index[level * spec.positions + position] = torch.arange(len(level))
            self.tables = Constants(
                level=level, position=position, start=starts[level], absent=codes + level, asked=codes + levels + level, index=index
            )
            self._of_level = [(level == k).nonzero()[:, 0] for k in range(levels)]
            self._positions = [position[cells] for cells in self._of_level]

    def take(self, grid: Tensor) -> Tensor:
        """[B, K, N] -> [B, C]."""
        tables = self.tables.on(grid.device)
        return grid[:, tables.level, tables.position]

    def by_level(self, states: Tensor, weights: Callable[[int], Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each level the positions int64 [N_k] of its cells and their logits.

        Args:
            states: float [B, C, D].
            weights: level -> [V_k, D], of its head.

        Returns:
            K pairs of positions and float [B, N_k, V_k].
        """
        return [(at, F.linear(states[:, cells], weights(k))) for k, (cells, at) in enumerate(zip(self._of_level, self._positions))]


def two_stream_mask(
    rank: Tensor,
    readable: Tensor,
    seen: Tensor | None = None,
    prefix: int = 0,
    prefix_mask: Tensor | None = None,
    asked: Tensor | None = None,
) -> Tensor:
    """Which tokens see which in the sequence of P of a prefix, C of content and Q queries.

    Args:
        rank: int64 [B, C].
        readable: bool [B, C], content that others may see (a masked cell has none).
        seen: int64 [B], query rows see ranks up to it alone; None: all that are lower than their own.
        prefix: P; it is seen by all and sees itself only.
        prefix_mask: bool [B, P]; None: all are there.
        asked: int64 [B, Q], ranks of the queries; None: a query for every cell.

    Returns:
        bool [B, 1, P + C + Q, P + C + Q], True where seen.
    """
    asked = rank if asked is None else asked
    batch, cells = rank.shape
    length, queries = prefix + cells + asked.shape[1], prefix + cells
    lower = rank[:, None] < asked[:, :, None]
    if seen is not None:
        lower = lower & (rank <= seen[:, None])[:, None]
    out = torch.eye(length, dtype=torch.bool, device=rank.device).repeat(batch, 1, 1)
    out[:, :, :prefix] = True if prefix_mask is None else prefix_mask[:, None]
    out[:, prefix:queries, prefix:queries] |= (rank[:, None] <= rank[:, :, None]) & readable[:, None]
    out[:, queries:, prefix:queries] = lower & readable[:, None]
    return out[:, None]
