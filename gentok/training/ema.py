"""Averaged weights: Lightning's WeightAveraging with an exponential average whose decay ramps up.

decay_n = min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by its first weights. Buffers (codebook statistics, EMA
codebooks, which are averages already) are taken as they are. Averaged weights are validated, saved and sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging

__all__ = ["EMA"]


class EMA(WeightAveraging):
    """Averages of the weights, which are what is validated, saved and sampled.

    Args:
        decay: in [0, 1), of one optimizer step.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema={decay}: a decay in [0, 1), such as 0.999, or null for none")

        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
            n = int(count)
            torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Nothing yet: the last checkpoint, from which a longer run may go on, needs the raw weights too."""

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """The model takes the averaged weights; also where the run that was resumed had ended already."""
        self._copy_average_to_current(module)
