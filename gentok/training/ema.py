"""Averaged weights: Lightning's WeightAveraging with an exponential average whose decay ramps up.

decay_n = min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by its first weights. Buffers (codebook statistics, EMA
codebooks, which are averages already) are taken as they are. Averaged weights are validated, saved and sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging

from gentok.training.sharding import full_state, is_sharded, load_full_state, own_part, reshard, shard

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
            n = int(self._average_model.n_averaged)  # which is `count`, on the CPU: nothing to wait for
            own = [[own_part(tensor) for tensor in tensors] for tensors in (averaged, current)]
            torch._foreach_lerp_(*own, 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Moves the averages, which were made where the model was before training, to its device; and shards them as the model is: every
        process averages its own shards."""
        self._average_model.module.to(module.device)
        if is_sharded(module):
            shard(self._average_model.module, trainer.strategy.mesh)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        reshard(module)  # what is swapped are the shards
        super().on_validation_epoch_end(trainer, module)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, module, checkpoint)
        if self._average_model is not None and is_sharded(module):
            checkpoint["state_dict"] = full_state(self._average_model.module)

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None or not is_sharded(module):
            super().on_load_checkpoint(trainer, module, checkpoint)
            return
        load_full_state(self._average_model.module, checkpoint["state_dict"])
        self._average_model.load_state_dict(checkpoint["averaging_state"], strict=False)
        load_full_state(module, checkpoint["current_model_state"])

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Nothing yet: the last checkpoint, from which a longer run may go on, needs the raw weights too."""

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """The model takes the averaged weights; also where the run that was resumed had ended already."""
        self._copy_average_to_current(module)
