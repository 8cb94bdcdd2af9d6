"""Values that can be known to be wrong before anything heavy is imported: numbers, devices, durations, choices of words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gentok.durations import seconds
from gentok.errors import ConfigError, nearest_name

__all__ = ["check_values"]

WHOLE = {  # key -> the least whole number that it may be
    "n": 1, "batch_size": 1, "seed": 0, "steps": 1, "max_train": 1, "max_held_out": 1, "columns": 1, "limit_items": 1, "levels": 1,
    "epochs": 1, "classifier_steps": 1, "profile": 1, "describe_classes": 1, "trainer.log_every": 1,
    "trainer.validate_every": 1, "trainer.checkpoint_every": 1, "trainer.accumulate": 1, "trainer.validate_batches": 1,
    "trainer.workers": 0,
    "trainer.num_nodes": 1,
}  # fmt: skip
NEEDED = ("seed", "n", "batch_size")
CHOICES = {
    "clock": ("wall", "cpu"), "bundle_dtype": ("float32", "bfloat16"), "dtype": ("float32", "bfloat16"),
    "guidance_schedule": ("constant", "linear", "cosine"), "trainer.precision": ("auto", "bf16-mixed", "32-true"),
    "precision": ("auto", "bf16-mixed", "32-true"), "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
}  # fmt: skip
TRUTHS = ("ema", "few", "progress", "overfit", "print_config", "describe", "trainer.progress_bar")
NUMBERS = ("guidance", "max_memory", "chunk", "trainer.clip", "sampler.temperature")


def check_values(config: Mapping[str, Any]) -> None:
    """Raises ConfigError, one line, on the first value of a composed configuration that cannot be meant; null is left alone."""
    for key, least in WHOLE.items():
        value, given = _get(config, key), key in config
        if (value is not None or (given and key in NEEDED)) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{key}={value}: a whole number, at least {least}")
    for key in NUMBERS:
        value = _get(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0):
            raise ConfigError(f"{key}={value}: a number of at least 0")
    for key in TRUTHS:
        value = _get(config, key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{key}={value}: true or false")
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value is not None and value not in allowed:
            raise ConfigError(f"{key}={value}{nearest_name(str(value), allowed)}")
    device = _get(config, "device")
    if device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(device)):
        raise ConfigError(f"device={device}: auto, cpu, cuda, cuda:N or mps")
    try:
        seconds(_get(config, "budget"))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
