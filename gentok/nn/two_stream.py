"""Two streams in one pass: content rows hold cells, query rows predict them (Yang et al., XLNet, arXiv 1906.08237, section 2.3).

Every cell has a rank. Rank 0 is the visible block, which attends fully to itself; positive ranks are an order. A content row sees the
content of ranks up to its own, a query row the content of lower ranks and itself, which knows no more than its place. So the output at a
query row is a law of its cell given the cells before it, and one pass gives those of all cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["two_stream_mask"]


def two_stream_mask(
    rank: Tensor,
    readable: Tensor,
    seen: Tensor | None = None,
    prefix: int = 0,
    prefix_mask: Tensor | None = None,
    asked: Tensor | None = None,
) -> Tensor:
    """Who sees whom in the sequence (prefix P, content C, queries Q): bool [B, 1, P + C + Q, P + C + Q], True where seen.

    rank int64 [B, C]; readable bool [B, C]: content that others may see (a hole has none). seen int64 [B]: query rows see ranks up to it
    alone; None: all that are lower than their own. asked int64 [B, Q]: ranks of the queries; None: a query for every content row. The
    prefix is seen by all and sees itself only; prefix_mask bool [B, P], None: all.
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
