"""What the trainer costs: the same steps by Lightning, as `train.py` runs them, and bare.

A generator, by the trainer and by a loop: both train the network of one configuration on one batch of tokens
in memory, with the same optimizer, schedule, autocast, gradient clipping, random streams and averaged
weights, so that from the same start they end in the same weights. The trainer also does its logs and
callbacks (without the progress bar, validation and images). Only steps are timed, not what surrounds them,
and the first `warm` are not.

A tokenizer, by the trainer and as forward and backward passes alone. And a whole run from token shards on
disk, with its waits for data.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from gentok.build import build
from gentok.bundle import Bundle, build_generator, build_tokenizer, save, stamp
from gentok.cli import compose
from gentok.data.datasets import identity
from gentok.rng import RowRNG
from gentok.training.generator_task import GeneratorTask
from gentok.training.run import train
from gentok.training.tokenizer_task import TokenizerTask
from gentok.training.trainer import build_trainer, precision
from gentok.types import Batch, ConditionSpec

__all__ = ["by_trainer", "by_loop", "tokenizer_by_trainer", "tokenizer_by_network", "from_shards"]


class _Stopwatch(L.Callback):
    """Seconds from the end of step `warm` to the end of the last."""

    def __init__(self, warm: int):
        self.warm, self.began, self.ended = warm, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.ended = time.perf_counter()
        if trainer.global_step == self.warm:
            self.began = self.ended


def _fit(task: L.LightningModule, batch: Batch, steps: int, warm: int) -> float:
    """Seconds of `steps` steps through Lightning on one batch, after `warm` others."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            trainer = build_trainer({**task.config, "trainer": {**task.config["trainer"], "progress_bar": False}}, Path(folder), task)
            stopwatch = _Stopwatch(warm)
            trainer.callbacks.append(stopwatch)
            trainer.fit(task, DataLoader([batch] * (warm + steps), batch_size=None, collate_fn=identity))
        finally:
            log.setLevel(level)
    return stopwatch.ended - stopwatch.began


def _loop(step: Callable[[int], None], steps: int, warm: int) -> float:
    """Seconds of step(warm), step(warm + 1), ..., `steps` of them, after the ones before."""
    for i in range(warm):
        step(i)
    began = time.perf_counter()
    for i in range(warm, warm + steps):
        step(i)
    return time.perf_counter() - began


def _autocast(config: Mapping[str, Any]) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision(config["trainer"]["precision"], "cpu") == "bf16-mixed")


def by_trainer(
    config: Mapping[str, Any], tokenizer: Bundle, condition_spec: ConditionSpec, batch: Batch, steps: int, warm: int = 4
) -> tuple[float, nn.Module]:
    """Trains a generator by Lightning.

    Args:
        config: a resolved conf/config.yaml.
        tokenizer: the bundle whose tokens are modelled.
        condition_spec: what the generator is conditioned on.
        batch: cached tokens, the same in every step.
        steps: how many are timed.
        warm: steps before these.

    Returns:
        Seconds of the timed steps; the generator with averaged weights.
    """
    torch.manual_seed(config["seed"])
    task = GeneratorTask({**config, "steps": warm + steps, "budget": None}, tokenizer, condition_spec)
    return _fit(task, batch, steps, warm), task.generator


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
    clip, decay = config["trainer"]["clip"] or float("inf"), config["callbacks"]["ema"]

    def train_step(step: int) -> None:
        rng = RowRNG.of(config["seed"], batch.index, step).fork("generator")
        with _autocast(config):
            loss = model.loss(batch.tokens, batch.condition, rng).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        scheduler.step()
        if decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - min(decay, (1 + step) / (10 + step)) if step else 1.0)

    seconds = _loop(train_step, steps, warm)
    if decay is not None:
        with torch.no_grad():
            torch._foreach_copy_(parameters, average)
    return seconds, model


def tokenizer_by_trainer(config: Mapping[str, Any], batch: Batch, steps: int, warm: int = 2) -> float:
    """Trains a tokenizer by Lightning: augmentation, forward, backward, clipping, optimizer, averages, logs.

    Args:
        config: as TokenizerTask takes it.
        batch: media, the same in every step.
        steps: how many are timed.
        warm: steps before these.

    Returns:
        Seconds of the timed steps.
    """
    torch.manual_seed(config["seed"])
    return _fit(TokenizerTask({**config, "steps": warm + steps, "budget": None}), batch, steps, warm)


def tokenizer_by_network(config: Mapping[str, Any], batch: Batch, steps: int, warm: int = 2) -> float:
    """Seconds of as many forward and backward passes of the same network alone, on the CPU."""
    torch.manual_seed(config["seed"])
    model = build_tokenizer(config["tokenizer"], config["trust"], training=True).train()

    def passes(step: int) -> None:
        with _autocast(config):
            losses = model(batch, RowRNG.of(config["seed"], batch.index, step).fork("tokenizer")).losses
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()

    return _loop(passes, steps, warm)


def from_shards(overrides: Sequence[str], folder: Path, steps: int, items: int) -> tuple[float, float]:
    """A run of train.py from token shards on disk: noise images, 64 tokens of 512 by an untrained tokenizer.

    Args:
        overrides: of conf/config.yaml, of a generator's experiment.
        folder: of the run, the tokenizer and the shards, which a second call finds there.
        steps: how many are counted, after 20 others.
        items: images in a shard.

    Returns:
        Seconds of the steps; seconds of these that the run waited for data.
    """
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        config = compose("config", ["tokenizer=vqgan", "tokenizer.width=16", "codebook=vq"])["tokenizer"] | {"media_shape": [3, 32, 32]}
        model = build_tokenizer(config).eval()
        stamp(model, config)
        save(tokenizer, tokenizer=model, tokenizer_config=config)
    config = compose("config", [
        *overrides, "data=noise", f"data.items={items}", f"tokenizer.ckpt={tokenizer}", f"steps={steps + 20}", "budget=null",
        "task.pictures=0", f"paths.run={folder / 'run'}", f"paths.cache={folder}", "logger=csv", "print_config=false",
        "trainer.progress_bar=false", "trainer.validate_every=1000000", "trainer.checkpoint_every=1000000", "trainer.log_every=20",
    ])  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = train(config)
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("data_wait") and int(row["step"]) >= 40]
    passed = [20 * config["batch_size"] * 64 / float(row["tokens_per_second"]) for row in rows]
    return sum(passed), sum(float(row["data_wait"]) * seconds for row, seconds in zip(rows, passed))
