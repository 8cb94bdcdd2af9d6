"""Averaged weights: Lightning's WeightAveraging with an exponential average whose decay ramps up.

decay_n = min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by its first weights. Buffers (codebook statistics, EMA
codebooks, which are averages already) are taken as they are. Averaged weights are validated, saved and sampled.
"""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging

__all__ = ["EMA"]


class EMA(WeightAveraging):
    """decay: in [0, 1), of one optimizer step."""

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema={decay}: a decay in [0, 1), such as 0.999, or null for none")

        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
            n = int(count)
            torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=average)
