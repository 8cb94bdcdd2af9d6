"""Callbacks of every run: stop on budget, pictures and sounds, and a progress bar for endless loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

__all__ = ["Budget", "ImageLogger", "SoundLogger"]


class Budget(L.Callback):
    """Stops at the first step at which the task's progress (by steps or by the clock) is complete. Lightning would validate a loop that is
    told to stop once more: that is left to the validation which follows every training, of the same weights."""

    def __init__(self) -> None:
        self._batches: int | float | None = None  # of a validation, while there is to be none

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if module.progress >= 1.0 and self._batches is None:
            trainer.should_stop = True
            self._batches, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        if self._batches is not None:
            trainer.limit_val_batches, self._batches = self._batches, None


class ImageLogger(L.Callback):
    """Writes what the task drew while validating, as FOLDER/NAME_STEP.png and into the run's loggers, and its codes as maps.

    Args:
        folder: of the pictures.
        name: what they are called.
        columns: pictures of a row.
    """

    def __init__(self, folder: Path, name: str, columns: int):
        self.folder, self.name, self.columns = Path(folder), name, columns

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if module.pictures is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        for name, pictures in ((self.name, module.pictures), ("codes", module.code_maps)):
            if pictures is not None and pictures.shape[1] in (1, 3):
                self._write(trainer, name, pictures)
        module.pictures = module.code_maps = None

    def _write(self, trainer: L.Trainer, name: str, pictures: Any) -> None:
        from gentok.data.image_files import grid, save_image, to_uint8

        picture = grid(pictures, self.columns)
        save_image(picture, self.folder / f"{name}_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:  # of tensorboard the writer has the method, of others the logger, if it takes images at all
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(name, (picture + 1) / 2, trainer.global_step)
            elif hasattr(logger, "log_image"):
                logger.log_image(name, [to_uint8(picture).movedim(0, -1).numpy()], step=trainer.global_step)


class SoundLogger(L.Callback):
    """Writes what the task made to be heard while validating, as FOLDER/NAME_STEP/*.wav and into the run's loggers.

    Args:
        folder: of the sounds.
        name: what they are called.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = Path(folder), name

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not module.sounds or not trainer.is_global_zero or trainer.sanity_checking:
            return
        from gentok.data.sound_files import save_sound

        rate = module.modality.sample_rate
        for name, wave in module.sounds:
            path = self.folder / f"{self.name}_{trainer.global_step:07d}" / f"{name}.wav"
            save_sound(wave, path, rate)
            for logger in trainer.loggers:  # as above
                if hasattr(logger.experiment, "add_audio"):
                    mono = wave.mean(0, keepdim=True).clamp(-1, 1)
                    logger.experiment.add_audio(f"{self.name}/{name}", mono, trainer.global_step, sample_rate=rate)
                elif hasattr(logger, "log_audio"):
                    logger.log_audio(f"{self.name}/{name}", [str(path)], step=trainer.global_step)
        module.sounds = None
