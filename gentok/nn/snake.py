"""Snake (Ziyin et al., arXiv 2006.08195): x + sin(a x)^2 / a, periodic in part, as sound is.

One a per channel, learnt, 1 at the start (BigVGAN, arXiv 2206.04658; DAC, arXiv 2306.06546, whose small number in the divisor is here too).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Snake"]


class Snake(nn.Module):
    """float [B, channels, T] -> the same shape and type."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()
