"""Measures of drawings: how alike their pictures are, and how many are valid, different from each other, and new."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

__all__ = ["nearest_picture", "overlap", "shares"]


def overlap(made: Tensor, media: Tensor) -> Tensor:
    """Intersection over union of the ink of pictures, pair by pair.

    Args:
        made, media: float [B, 1, H, W] in [-1, 1], black on white.

    Returns:
        float64 [B] in [0, 1]; 1 where neither has any ink.
    """
    a, b = ((1 - x.double().clamp(-1, 1)).flatten(1) / 2 for x in (made, media))
    union = torch.maximum(a, b).sum(1)
    return torch.where(union > 0, torch.minimum(a, b).sum(1) / union.clamp(min=1e-12), 1.0)


def nearest_picture(media: Tensor, known: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The most similar of some known pictures, by 1 - intersection over union of pixels that are more black than white.

    Args:
        media: float [B, 1, H, W] in [-1, 1], black on white.
        known: float [M, 1, H, W], M >= 1.
        chunk: rows that are compared at once.

    Returns:
        (distances float64 [B] in [0, 1], numbers int64 [B] of the known ones).
    """
    other = (known < 0).flatten(1).float()
    area, best, number = other.sum(1), [], []
    for part in (media < 0).flatten(1).float().split(chunk):
        both = part @ other.T  # whole numbers, which float32 holds exactly
        either = part.sum(1, keepdim=True) + area - both
        distance = torch.where(either > 0, 1 - both.double() / either.clamp(min=1), 0.0)
        value, index = distance.min(1)
        best.append(value)
        number.append(index)
    return torch.cat(best), torch.cat(number)


def shares(made: Sequence[Hashable], valid: Sequence[bool], known: Sequence[Hashable]) -> dict[str, float]:
    """Shares of drawings.

    Args:
        made: the drawings, as what is equal for two that are the same.
        valid: whether each is one.
        known: those that the model was trained on.

    Returns:
        validity: of all; uniqueness: different ones among the valid; novelty: of the valid, those that are none of the known.
    """
    kept, old = [drawing for drawing, good in zip(made, valid) if good], set(known)
    count = max(len(kept), 1)
    return {
        "validity": len(kept) / max(len(made), 1),
        "uniqueness": len(set(kept)) / count,
        "novelty": sum(drawing not in old for drawing in kept) / count,
    }
