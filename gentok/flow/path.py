"""The straight path of rectified flow (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747), data
at t = 0 and noise at t = 1.

    x_t = (1 - t) x + t eps,      v = d x_t / dt = eps - x

A network learns v by mean squared error; what else one may want of a point and its velocity follows from the
two lines above:

    x = x_t - t v,      eps = x_t + (1 - t) v,      score = grad log p_t(x_t) = -E[eps | x_t] / t

Everything is for tensors [B, ...] (data x, noise eps, points x_t, velocities v) with t float [B] in [0, 1], a
time per row, or a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["interpolate", "velocity", "data_of", "noise_of", "score_of"]


def _as(t: Tensor | float, x: Tensor) -> Tensor:
    """Times in x's dtype, [B] broadcast over all axes behind the first."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.view(-1, *(1,) * (x.dim() - 1)) if t.dim() == 1 else t


def interpolate(x: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
    """The point x_t of the path from x at t = 0 to eps at t = 1."""
    t = _as(t, x)
    return (1 - t) * x + t * eps


def velocity(x: Tensor, eps: Tensor) -> Tensor:
    """The velocity v of the path, the same at every t."""
    return eps - x


def data_of(x_t: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The end of the path at t = 0 that v points back to."""
    return x_t - _as(t, x_t) * v


def noise_of(x_t: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The end of the path at t = 1 that v points to."""
    return x_t + (1 - _as(t, x_t)) * v


def score_of(x_t: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The score where v is the mean velocity at x_t. Not finite at t = 0."""
    return -noise_of(x_t, v, t) / _as(t, x_t)
