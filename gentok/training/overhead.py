"""What the trainer costs: the same generator steps by Lightning, as `train.py` runs them, and by a bare loop.

Both train the network of one configuration on one batch of tokens in memory, with the same optimizer, schedule, autocast, gradient
clipping, row noise and averaged weights, so that from the same start they end in the same weights. The trainer does its logs and callbacks
(without the progress bar, validation and pictures) on top. Only steps are timed, not what surrounds them, and the first `warm` are not.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from gentok.build import build
from gentok.bundle import Bundle, build_generator
from gentok.data.sets import identity
from gentok.noise import Noise
from gentok.tokens import Batch, ConditionSpec
from gentok.training.generator_task import GeneratorTask
from gentok.training.run import _trainer, precision

__all__ = ["by_trainer", "by_loop"]


class _Stopwatch(L.Callback):
    """Seconds from the end of step `warm` to the end of the last."""

    def __init__(self, warm: int):
        self.warm, self.began, self.ended = warm, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.ended = time.perf_counter()
        if trainer.global_step == self.warm:
            self.began = self.ended


def by_trainer(
    config: Mapping[str, Any], tokenizer: Bundle, condition_spec: ConditionSpec, batch: Batch, steps: int, warm: int = 4
) -> tuple[float, nn.Module]:
    """(seconds of `steps` steps, the generator with averaged weights) by Lightning. config: a resolved conf/config.yaml; batch: cached
    tokens."""
    torch.manual_seed(config["seed"])
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet.setLevel(logging.ERROR)
        try:
            task = GeneratorTask({**config, "steps": warm + steps, "budget": None}, tokenizer, condition_spec)
            trainer = _trainer({**task.config, "trainer": {**config["trainer"], "progress_bar": False}}, Path(folder), task)
            watch = _Stopwatch(warm)
            trainer.callbacks.append(watch)
            trainer.fit(task, DataLoader([batch] * (warm + steps), batch_size=None, collate_fn=identity))
        finally:
            quiet.setLevel(level)
    return watch.ended - watch.began, task.generator


def by_loop(
    config: Mapping[str, Any], tokenizer: Bundle, condition_spec: ConditionSpec, batch: Batch, steps: int, warm: int = 4
) -> tuple[float, nn.Module]:
    """As by_trainer, by a bare PyTorch loop on the CPU."""
    torch.manual_seed(config["seed"])
    model = build_generator(config["generator"], tokenizer.tokenizer, condition_spec, config["trust"]).train()
    parameters = list(model.parameters())
    average = copy.deepcopy(parameters)
    optimizer = build(config["optimizer"])(model)
    schedule = build(config["schedule"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / (warm + steps), step))
    bfloat16 = precision(config["trainer"]["precision"], "cpu") == "bf16-mixed"
    clip, decay = config["trainer"]["clip"] or float("inf"), config["callbacks"]["ema"]
    began = 0.0
    for step in range(warm + steps):
        if step == warm:
            began = time.perf_counter()
        noise = Noise.of(config["seed"], batch.index, step).fork("generator")
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.loss(batch.tokens, batch.condition, noise).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        scheduler.step()
        if decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - min(decay, (1 + step) / (10 + step)) if step else 1.0)
    took = time.perf_counter() - began
    if decay is not None:
        with torch.no_grad():
            torch._foreach_copy_(parameters, average)
    return took, model
