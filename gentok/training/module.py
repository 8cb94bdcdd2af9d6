"""What both training tasks share: progress by steps or by the clock, optimizer and schedule, logs, and a checkpoint that loads by itself.

A task holds its configuration as a plain dict (so that checkpoints load with weights_only) and builds its parts in `configure_model`,
after the process group exists. Frozen parts lie in `Outside`: no child of the module, so neither optimised, averaged nor saved with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gentok import __version__
from gentok.build import build
from gentok.bundle import FORMAT
from gentok.noise import Noise
from gentok.tokens import Batch

__all__ = ["Outside", "GentokModule", "seconds"]


def seconds(text: str | float | int | None) -> float | None:
    """'90s', '6min', '2h', 90 -> seconds. Raises ValueError on anything else."""
    if text is None:
        return None
    units = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
    word = str(text).strip()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(number) :].strip() or "s"
    try:
        value = float(number) * units[unit]
    except (KeyError, ValueError):
        value = -1.0
    if value <= 0:
        raise ValueError(f"budget={text}: expected a positive time such as 90s, 6min or 2h")
    return value


class Outside:
    """Holds a frozen module outside the registered children; copies of its owner share it."""

    def __init__(self, module: Any):
        self.module = module

    def __deepcopy__(self, memo: dict) -> Outside:
        return self


class GentokModule(L.LightningModule):
    """config: the resolved configuration of the run, a plain dict. Subclasses build in `configure_model`, idempotently."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        self.save_hyperparameters({"config": self.config})
        self.budget, self.steps = seconds(config["budget"]), config["steps"]
        self._started: float | None = None
        self.steps_done = 0
        self._seen, self._clock = 0, time.perf_counter()

    # ------------------------------------------------------------------------------------------------------ progress

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1], by whichever of steps and budget is further on."""
        by_steps = self.global_step / self.steps if self.steps else 0.0
        by_clock = (time.monotonic() - self._started) / self.budget if self.budget and self._started else 0.0
        return min(1.0, max(by_steps, by_clock))

    def on_train_start(self) -> None:
        self._started = time.monotonic()

    def on_train_end(self) -> None:
        self.steps_done = self.global_step

    def noise(self, batch: Batch, purpose: str) -> Noise:
        """Row streams by (run seed, step, global index): the same for any split over processes."""
        return Noise.of(self.config["seed"], batch.index, self.global_step).fork(purpose)

    # --------------------------------------------------------------------------------------------- optimizer and logs

    def configure_optimizers(self) -> Any:
        optimizer = build(self.config["optimizer"], where="optimizer")(self)
        schedule = build(self.config["schedule"], where="schedule")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(self.progress, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the global norm to trainer.clip (null: not at all) and logs what it was. Here and not in Lightning, which under mixed
        precision refuses fused optimizers for the sake of float16 scaling, which gentok does not use."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.config["trainer"]["clip"] or float("inf"))
        if self.global_step % self.config["trainer"]["log_every"] == 0:
            self.log("gradient_norm", norm)
            self.log("lr", optimizer.param_groups[0]["lr"])

    def log_step(self, loss: Tensor, terms: Mapping[str, Tensor], items: int, unit: str) -> None:
        """The training curves; stops the run with a line where the loss is no number any more."""
        self._seen += items
        if self.global_step % self.config["trainer"]["log_every"]:
            return
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.global_step}: lower optimizer.lr, or set trainer.precision=32-true"
            )
        now = time.perf_counter()
        speed = self._seen / max(now - self._clock, 1e-9)
        self._seen, self._clock = 0, now
        self.log("loss", loss.detach(), prog_bar=True)
        self.log(f"{unit}_per_second", speed, prog_bar=True)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach())

    def on_validation_end(self) -> None:
        self._seen, self._clock = 0, time.perf_counter()  # validation is not training speed

    # ---------------------------------------------------------------------------------------------------- checkpoint

    def document(self) -> dict[str, Any]:
        """The bundle.json of the model as it stands."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gentok"] = {"format": FORMAT, "gentok": __version__, **self.document()}
