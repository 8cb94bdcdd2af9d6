"""The run's logs: csv and tensorboard in its folder, Weights & Biases where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.errors import ConfigError

__all__ = ["check_loggers", "loggers"]


def check_loggers(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where a chosen log's package is missing. settings: config["logger"]."""
    if settings["wandb"] and importlib.util.find_spec("wandb") is None:
        raise ConfigError("logger=wandb needs the package wandb: pip install wandb, or choose logger=tensorboard or logger=csv")


def loggers(settings: Mapping[str, Any], run: Path, start: int = 0) -> list[Any]:
    """The loggers that are chosen, writing into the run's folder.

    Args:
        settings: config["logger"].
        run: the folder.
        start: the step that a resumed run goes on from.
    """
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    from gentok.training.metrics_file import MetricsFile

    made: list[Any] = []
    if settings["csv"]:
        made.append(MetricsFile(run, start))
    if settings["tensorboard"]:
        made.append(TensorBoardLogger(run, name="", version="", purge_step=start or None))
    if settings["wandb"]:
        made.append(WandbLogger(name=run.name, save_dir=run, **settings["wandb"]))
    return made
