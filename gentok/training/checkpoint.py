"""Checkpoints: written whole or not at all; saved every so often, at the end, and when the run is told to stop.

A checkpoint is written under a temporary name, flushed to the disk and renamed, so that a kill at any moment leaves the last good one (a
rename from another file system, as a temporary folder's would be, is a copy and can be cut off). Weights that are no numbers any more are
not saved. Steps are saved when they are complete: never between two batches of one update.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from gentok.atomic import replacing, sweep
from gentok.distributed import all_sum
from gentok.training.sharding import own_part
from gentok.training.stop_signals import StopSignals

__all__ = ["WholeFiles", "Saver", "Stopped", "LAST"]

LAST = "last.ckpt"


class Stopped(Exception):
    """The run was told to stop, and has saved a checkpoint.

    Args:
        signal_name: of the signal, such as SIGTERM.
        step: that was the last.
    """

    def __init__(self, signal_name: str, step: int):
        super().__init__(f"stopped by {signal_name} at step {step}")
        self.step = step
        self.status = 128 + getattr(signal, signal_name, 15)
        """The process's exit status, as shells have it."""


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints under the rule above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Raises OSError with a line where the disk is full or not writable."""
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
            cause = (error.__cause__ or error) if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]
            raise OSError(f"the checkpoint {path} cannot be written ({reason}); the one of before is untouched") from error


class Saver(Checkpoint):
    """Saves FOLDER/last.ckpt at intervals and at the end.

    From SIGTERM, SIGINT or SIGUSR1 on any process it finishes the step, saves and raises Stopped on all of them; a second SIGTERM or
    SIGINT is obeyed at once.

    Args:
        folder: of the checkpoints.
        every: steps between two.
    """

    def __init__(self, folder: Path, every: int):
        if every < 1:
            raise ValueError(f"trainer.checkpoint_every={every}: a number of steps, at least 1")
        self.folder, self.every = Path(folder), every
        self.saved: int | None = None
        """The step of the last checkpoint, None before the first."""
        self._step = 0
        self._signals = StopSignals(self.last_good)

    @property
    def path(self) -> Path:
        return self.folder / LAST

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._step = trainer.global_step
        if self._step:
            self.saved = self._step
        if trainer.is_global_zero and self.folder.is_dir():
            sweep(self.folder)
        self._signals.take()  # after Lightning's own handlers, which these replace while training

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        stop = self._signals.told is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or self._step % self.every == 0:
            self.save(trainer, module)
        if stop:
            raise Stopped(self._signals.told or "SIGTERM", self._step)

    def save(self, trainer: Any, module: Any) -> None:
        """On all processes. Raises ValueError instead where a weight is not finite."""
        state = [(name, tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
        broken = all_sum(torch.stack([~own_part(tensor).isfinite().all() for _, tensor in state]).int())
        if broken.any():
            name = state[int(broken.nonzero()[0])][0]
            raise ValueError(f"{name} is not finite any more at step {trainer.global_step}; {self.last_good()}")
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step

    def last_good(self) -> str:
        """Where the last good checkpoint is, as a part of a sentence."""
        return f"the last good checkpoint, {self.path}, is of step {self.saved}" if self.saved else "there is no checkpoint yet"

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._signals.give_back()
        if self.saved != trainer.global_step:
            self.save(trainer, module)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._signals.give_back()
