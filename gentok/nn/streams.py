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
    rank: Tensor, readable: Tensor, seen: Tensor | None = None, prefix: int = 0, prefix_mask: Tensor | None = None
) -> Tensor:
    """Who sees whom in the sequence (prefix P, content C, queries C): bool [B, 1, P + 2C, P + 2C], True where seen.

    rank int64 [B, C]; readable bool [B, C]: content that others may see (a hole has none). seen int64 [B]: query rows see ranks up to it
    alone; None: all that are lower than their own. The prefix is seen by all and sees itself only; prefix_mask bool [B, P], None: all.
    """
    batch, cells = rank.shape
    own = torch.eye(cells, dtype=torch.bool, device=rank.device)
    content = (rank[:, None] <= rank[:, :, None]) & readable[:, None] | own
    lower = rank[:, None] < rank[:, :, None]
    if seen is not None:
        lower = lower & (rank <= seen[:, None])[:, None]
    out = torch.zeros(batch, prefix + 2 * cells, prefix + 2 * cells, dtype=torch.bool, device=rank.device)
    out[:, :, :prefix] = True if prefix_mask is None else prefix_mask[:, None]
    out[:, prefix : prefix + cells, prefix : prefix + cells] = content
    out[:, prefix + cells :, prefix : prefix + cells] = lower & readable[:, None]
    out[:, prefix + cells :, prefix + cells :] = own
    return out[:, None]
