"""Lightning's Trainer as conf/trainer and `callbacks` describe it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentok.errors import ConfigError
from gentok.training.loggers import loggers
from gentok.training.module import GentokModule
from gentok.training.processes import strategy

__all__ = ["build_trainer", "precision"]


def precision(choice: str, accelerator: str) -> str:
    """Lightning's name of a precision.

    Args:
        choice: "bf16-mixed", "32-true", or "auto": bf16-mixed where it is the faster one, on a GPU that computes in it and on a CPU with
            AMX tiles; else 32-true. Of AVX512-BF16 alone auto makes no use: on a Xeon a step of a transformer took 1.0 s in it,
            0.77 s in float32.
        accelerator: Lightning's, such as "cpu" or "gpu".

    Raises:
        ConfigError: another choice.
    """
    if choice != "auto":
        if choice not in ("bf16-mixed", "32-true"):
            raise ConfigError(
                f"trainer.precision={choice}: choose auto, bf16-mixed or 32-true (float16 needs loss scaling, which gentok does not do)"
            )
        return choice
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else "32-true"  # a private name


def build_trainer(config: Mapping[str, Any], run: Path, task: GentokModule, start: int = 0, begin: Any = None) -> Any:
    """A Trainer for one run.

    Args:
        config: the run's configuration.
        run: its folder.
        task: what is trained.
        start: the step that a resumed run goes on from.
        begin: a callback that comes before all others.
    """
    import lightning as L
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from gentok.training.callbacks import Budget, ImageLogger, SoundLogger
    from gentok.training.checkpoint import Saver, WholeFiles
    from gentok.training.ema import EMA
    from gentok.training.progress_bar import progress_callback

    settings, shown = config["trainer"], "reconstructions" if config["task"]["name"] == "tokenizer" else "samples"
    callbacks: list[Any] = [
        *([] if begin is None else [begin]),
        Budget(),
        ImageLogger(run / "pictures", shown, _columns(config)),
        SoundLogger(run / "sounds", shown),
        Saver(run / "checkpoints", settings["checkpoint_every"]),
    ]
    if config["callbacks"]["ema"] is not None:
        callbacks.append(EMA(config["callbacks"]["ema"]))
    bar = progress_callback(settings["progress_bar"])
    if bar is not None:
        callbacks.append(bar)
    if config["profile"] is not None:
        from gentok.training.profile import Profile

        callbacks.append(Profile(run, config["profile"]))
    plugins: list[Any] = [WholeFiles()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # signals are the Saver's
    return L.Trainer(
        accelerator=settings["accelerator"], devices=settings["devices"], num_nodes=settings["num_nodes"], strategy=strategy(settings),
        plugins=plugins,
        precision=precision(settings["precision"], settings["accelerator"]),
        accumulate_grad_batches=settings["accumulate"] if task.automatic_optimization else 1,  # a manual task accumulates by itself
        max_steps=config["steps"] or -1, max_epochs=-1, callbacks=callbacks,
        logger=loggers(config["logger"], run, start) or False, log_every_n_steps=settings["log_every"],
        limit_val_batches=settings["validate_batches"] or 1.0,
        val_check_interval=settings["validate_every"], check_val_every_n_epoch=None, num_sanity_val_steps=0,
        default_root_dir=run, use_distributed_sampler=False,
        inference_mode=settings["strategy"] != "fsdp",  # what is gathered in it could not be trained with
        enable_progress_bar=isinstance(bar, L.pytorch.callbacks.ProgressBar), enable_model_summary=False,
    )  # fmt: skip


def _columns(config: Mapping[str, Any]) -> int:
    """A row of originals over a row of reconstructions; samples in tens, a class each where there are ten."""
    return config["task"]["pictures"] if config["task"]["name"] == "tokenizer" else 10
