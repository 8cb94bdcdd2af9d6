"""How far a run is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

__all__ = ["progress_callback"]

LINES = 20
"""Of a whole run in a log file, about."""


def progress_callback(shown: bool) -> Callback | None:
    """A bar where there is a terminal, lines elsewhere; None unless `shown`."""
    if not shown:
        return None
    return _Bar() if sys.stdout.isatty() else _Lines()


class _Bar(TQDMProgressBar):
    """Counts batches from where a resumed run goes on; under a budget, the total is an estimate from the time that is left."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    @property
    def total_train_batches(self) -> int | float:
        module: Any = self.trainer.lightning_module
        steps = self.trainer.max_steps
        known = steps if steps and steps > 0 else float("inf")
        share = module.progress
        estimate = module.global_step / share if module.budget and share > 0 else float("inf")
        total = min(known, estimate) * self.trainer.accumulate_grad_batches
        return total if total == float("inf") else round(total)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        bar = self.train_progress_bar
        bar.n = bar.initial = bar.last_print_n = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        bar.set_description("Training")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        total = self.total_train_batches
        self.train_progress_bar.total = None if total == float("inf") else total
        super().on_train_batch_end(trainer, *args)


class _Lines(Callback):
    """A line at every twentieth of the run: in a log file a bar would be hundreds of lines."""

    def __init__(self) -> None:
        self.said, self.began, self.first = 0, 0.0, 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.said, self.began, self.first = int(module.progress * LINES), time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        part = int(module.progress * LINES)
        if part <= self.said or not trainer.is_global_zero:
            return
        self.said = part
        speed = (trainer.global_step - self.first) / max(time.perf_counter() - self.began, 1e-9)
        figures = ", ".join(f"{key} {float(value):.4g}" for key, value in trainer.progress_bar_metrics.items())
        print(f"step {trainer.global_step} ({100 * module.progress:.0f} %), {speed:.1f} steps/s: {figures}", flush=True)
