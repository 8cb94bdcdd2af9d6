"""Adaptive projected guidance (Sadat et al., APG, arXiv 2410.02416), on velocities as in FlexTok (arXiv
2502.13967).

    m  <-  (v_c - v_u) + momentum m                 a running sum, from 0; momentum < 0 pushes away from what
                                                    was pushed before
    d   =  m min(1, threshold / |m|)                row by row
    d   =  d_orthogonal + eta d_parallel            to v_c
    v   =  v_c + (scale - 1) d

With momentum 0, threshold inf and eta 1 this is classifier-free guidance, v_u + scale (v_c - v_u)
(gentok/flow/guidance.py). Everything is computed in float64. Norms are taken over all axes of a row, so a
threshold fits one size of image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gentok.interfaces import Guidance
from gentok.settings import NonNegativeFloat, PositiveOrInf

__all__ = ["Projected"]


@dataclass(frozen=True)
class Projected(Guidance, id="guidance/projected"):
    """Adaptive projected guidance.

    Args:
        momentum: of the running sum, usually -0.5.
        threshold: > 0, of the norm of a row's difference; inf: none.
        eta: how much of the part parallel to v_c stays.
    """

    momentum: float = -0.5
    threshold: PositiveOrInf = 2.5
    eta: NonNegativeFloat = 0.0

    def __call__(self, conditional: Tensor, null: Tensor, scale: float, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The guided velocity.

        Args:
            conditional: v_c, float [B, ...].
            null: v_u, float [B, ...].
            scale: of the guidance; 1: none.
            state: m of the call before; None at the first.

        Returns:
            tuple[Tensor, Tensor]: v in v_c's dtype, and m, float64, for the next call.
        """
        condition = conditional.double()
        m = condition - null.double()
        if state is not None:
            m = m + self.momentum * state
        flat, along = m.flatten(1), condition.flatten(1)
        flat = flat * (self.threshold / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)
        unit = along / along.norm(dim=1, keepdim=True).clamp(min=1e-12)
        parallel = (flat * unit).sum(1, keepdim=True) * unit
        step = (flat - parallel + self.eta * parallel).view_as(m)
        return (condition + (scale - 1) * step).to(conditional.dtype), m
