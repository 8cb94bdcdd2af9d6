"""Rotary position embedding in one or more axes (Su et al., arXiv 2104.09864; axial 2-D as in LlamaGen, arXiv 2406.06525).

A token has integer coordinates, one per axis. A head's channels are split evenly between the axes, and channel pair i of an axis turns by
coordinate * theta^(-2i / channels of the axis). Pairs are (i, i + d/2), LLaMA's "rotate half" order.

Queries and keys have tables of their own: in a causal model the query may stand at the cell that it predicts and the key at the cell that
it holds. In 1-D this differs from the usual by an offset of one; on a raster it means that "the cell above the next one" is (-1, 0) also
across a line's end.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rotation", "rotation", "rotate", "widened"]

Rotation = tuple[Tensor, Tensor]
"""(cos, sin), each float [T, 2, 1, d/2] or [B, T, 2, 1, d/2]: index 0 rotates queries, 1 keys; the 1 stands for the heads. Or `widened`."""


def rotation(query: Tensor, key: Tensor | None = None, *, head_width: int, theta: float = 10000.0) -> Rotation:
    """The rotation of queries and keys at coordinates.

    Args:
        query: int or float [..., T, A], coordinates of queries.
        key: those of keys; None: the same.
        head_width: channels of an attention head.
        theta: base of the wave lengths.

    Returns:
        A Rotation, float32 (computed in float64).

    Raises:
        ValueError: the head's width does not split evenly: head_width % (2 A) != 0.
    """
    axes = query.shape[-1]
    if head_width % (2 * axes):
        raise ValueError(f"rotary embedding over {axes} axes needs a head width divisible by {2 * axes}; it is {head_width}")
    pairs = head_width // (2 * axes)
    rates = theta ** (-torch.arange(pairs, dtype=torch.float64, device=query.device) / pairs)
    both = torch.stack((query, query if key is None else key), -2).double()  # [..., T, 2, A]
    angles = (both[..., None] * rates).flatten(-2).unsqueeze(-2)  # [..., T, 2, 1, d/2]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rope: Rotation) -> Tensor:
    """x float [..., T, 2, H, d], queries and keys side by side -> the same, rotated, in x's type."""
    cos, sin = rope
    if cos.shape[-1] == x.shape[-1]:
        return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def widened(rope: Rotation) -> Rotation:
    """The same rotation with tables as wide as a head, (cos, cos) and (-sin, sin): fewer operations, the same bits, no gradient."""
    cos, sin = rope
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
