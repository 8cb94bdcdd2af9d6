"""Classifier-free guidance: how two predictions are combined, and how strongly at which point of a
generation.

Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598. One convention everywhere:

    l = l_u + g (l_c - l_u)          g = 1: no guidance, g = 0: unconditional, g > 1: towards the condition

(papers that write l_c + s (l_c - l_u) mean g = 1 + s). Schedules move g with the progress r in [0, 1] of a
generation, and all end at the scale:

    constant   g(r) = scale
    linear     g(r) = 1 + (scale - 1) r                            (Muse, MAR)
    cosine     g(r) = 1 + (scale - 1) (1 - cos(pi r)) / 2
    cosine:P   g(r) = 1 + (scale - 1) (1 - cos(pi r^P)) / 2        (power-cosine of MDT, TiTok and RAR; P > 0)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from gentok.errors import check_choice

__all__ = ["SCHEDULES", "check_guidance", "guidance_scale", "combine"]

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "linear": lambda r: r,
    "cosine": lambda r: (1.0 - torch.cos(math.pi * r)) / 2.0,
}
"""name -> the share of (scale - 1) that is applied at progress r."""


def check_guidance(scale: float, schedule: str) -> None:
    """Checks what guidance is asked for.

    Args:
        scale: g >= 0; 1: no guidance.
        schedule: one of SCHEDULES, or cosine:POWER.

    Raises:
        ValueError: the scale is negative, or the schedule unknown.
    """
    if _power(schedule) is None:
        check_choice("guidance schedule", schedule, SCHEDULES)
    if scale < 0:
        raise ValueError(f"the guidance scale must be >= 0 (1: no guidance); got {scale}")


def guidance_scale(schedule: str, scale: float, progress: Tensor) -> Tensor:
    """The scale g at some progress.

    Args:
        schedule: one of SCHEDULES, or cosine:POWER.
        scale: g at the end, >= 0.
        progress: float [...] in [0, 1]; values outside are clamped.

    Returns:
        Tensor: float [...].

    Raises:
        ValueError: see `check_guidance`.
    """
    check_guidance(scale, schedule)
    power, progress = _power(schedule), progress.clamp(0.0, 1.0)
    share = SCHEDULES[schedule](progress) if power is None else SCHEDULES["cosine"](progress**power)
    return 1.0 + (scale - 1.0) * share


def _power(schedule: str) -> float | None:
    """P of cosine:P; None where it is another schedule, or P is 0."""
    found = re.fullmatch(r"cosine:(\d+(\.\d+)?)", str(schedule))
    return (float(found[1]) or None) if found else None


def combine(conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
    """The guided logits l_u + g (l_c - l_u), at least in float32.

    Args:
        conditional: l_c, float [..., V].
        null: l_u, float [..., V].
        scale: g; broadcasts.

    Returns:
        Tensor: float [..., V]; -inf where either side is -inf.
    """
    dtype = torch.promote_types(torch.promote_types(conditional.dtype, null.dtype), torch.float32)
    conditional, null = conditional.to(dtype), null.to(dtype)
    if isinstance(scale, Tensor):
        scale = scale.to(dtype)
    impossible = (conditional == -torch.inf) | (null == -torch.inf)
    return torch.where(impossible, torch.full_like(null, -torch.inf), null + scale * (conditional - null))
