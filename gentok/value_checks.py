"""Keys that belong to no component: their types, ranges and words, checked before anything heavy is imported.

Keys of components are checked against their constructors (gentok/build.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gentok.durations import seconds
from gentok.errors import ConfigError, nearest_name
from gentok.settings import (
    Fraction,
    FractionBelow1,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    check_setting,
    words_of,
)  # fmt: skip

__all__ = ["SETTINGS", "check_values"]

Precision = Literal["auto", "bf16-mixed", "32-true"]
Dtype = Literal["float32", "bfloat16"]
Texts = Sequence[str]
Devices = Annotated[Sequence[NonNegativeInt], Field(min_length=1)]
Place = Annotated[str, Field(min_length=1)]

SETTINGS: dict[str, Any] = {  # key -> what it takes; null too, unless it is one of NEEDED
    # train.py
    "name": str, "steps": PositiveInt, "clock": Literal["wall", "cpu"], "budget": str | float, "resume": Place, "init_from": Place,
    "freeze": Texts, "bundle_dtype": Dtype, "limit_items": PositiveInt, "overfit": bool, "profile": PositiveInt, "print_config": bool,
    "describe": bool, "describe_classes": PositiveInt, "overwrite": bool, "sweep_metric": str,
    "task.name": Literal["tokenizer", "generator"], "task.pictures": NonNegativeInt, "task.sounds": NonNegativeInt,
    "task.decode_items": PositiveInt, "task.teacher_maps": NonNegativeFloat, "task.encode_batch": PositiveInt, "task.views": NonNegativeInt,
    "task.length_window": PositiveInt, "task.guidance": NonNegativeFloat,
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"], "trainer.devices": PositiveInt | Literal["auto"] | Devices,
    "trainer.num_nodes": PositiveInt, "trainer.strategy": str, "trainer.find_unused": bool, "trainer.precision": Precision,
    "trainer.clip": PositiveFloat, "trainer.accumulate": PositiveInt, "trainer.workers": NonNegativeInt, "trainer.log_every": PositiveInt,
    "trainer.validate_every": PositiveInt, "trainer.validate_batches": PositiveInt, "trainer.checkpoint_every": PositiveInt,
    "trainer.progress_bar": bool, "trainer.compile": bool, "trainer.checkpoint_activations": bool,
    "cluster.nodes": PositiveInt, "cluster.gpus_per_node": NonNegativeInt, "cluster.cpus_per_task": PositiveInt,
    "cluster.time": str | PositiveInt, "cluster.partition": Place, "cluster.account": Place, "cluster.memory": Place,
    "cluster.options": Mapping[str, str | int | bool],
    "callbacks.ema": FractionBelow1, "callbacks.collapse_below": NonNegativeFloat, "callbacks.collapse_steps": PositiveInt,
    "logger.csv": bool, "logger.tensorboard": bool, "logger.wandb": Mapping[str, Any],
    "paths.root": Place, "paths.run": Place, "paths.cache": Place,
    # several commands
    "seed": NonNegativeInt, "n": PositiveInt, "batch_size": PositiveInt, "ckpt": Place, "out": Place, "ema": bool,
    "progress": bool, "guidance": NonNegativeFloat, "guidance_schedule": Literal["constant", "linear", "cosine"], "trust": Texts,
    "sampler.temperature": NonNegativeFloat, "sampler.top_k": PositiveInt, "sampler.top_p": PositiveFraction, "sampler.min_p": Fraction,
    "sampler.typical": PositiveFraction,
    # sample.py
    "format": Literal["files", "npz", "both", "onnx", "torch_export", "parquet", "shards", "safetensors"],
    "known": Place, "keep": str | float, "text_encoder": Place, "duration": PositiveFloat | Sequence[PositiveFloat], "columns": PositiveInt,
    # evaluate and eval_classifier
    "suite": str, "ckpts": Texts, "region": str, "inception": Place, "reference": Place, "samples": Place,
    "protocol": Literal["auto", "reconstruction", "probe", "generation", "nll", "inception", "both"],
    "prefixes": Sequence[PositiveInt], "few": bool, "max_train": PositiveInt, "max_held_out": PositiveInt, "max_memory": PositiveFloat,
    "classifier": Place, "classifier_steps": PositiveInt, "cache": Place, "epochs": PositiveInt, "precision": Precision,
    # codec and adopt
    "action": Literal["compress", "decompress", "resynthesize"], "command": str, "input": Place, "output": Place, "levels": PositiveInt,
    "chunk": PositiveFloat,
    # serve
    "host": Place, "port": PositiveInt, "max_items": PositiveInt, "max_waiting": PositiveInt, "max_megabytes": PositiveFloat,
    "max_seconds": PositiveFloat,
    # watermarks
    "key": Place, "keys": PositiveInt, "inputs": Texts, "alignment": Literal["shift", "edit"], "gap": PositiveFloat,
    "media_shape": Sequence[PositiveInt], "dtype": Dtype | Literal["int8", "auto"], "classes": PositiveInt,
    # push
    "repo": Place, "private": bool, "revision": Place, "message": Place, "license": Place, "picture": Place, "report": Place, "card": bool,
    "folder": Place,
    # export
    "parts": Sequence[Literal["encoder", "decoder"]], "frames": PositiveInt,
}  # fmt: skip
NEEDED = (
    "seed", "n", "batch_size", "out", "name", "clock", "bundle_dtype", "overfit", "print_config", "describe", "overwrite", "ema",
    "progress", "device", "guidance_schedule", "few", "max_train", "max_held_out", "max_memory", "classifier", "protocol",
    "chunk", "dtype", "format", "trust", "freeze", "keys", "alignment", "task.pictures", "task.decode_items", "task.encode_batch",
    "task.length_window", "task.views", "task.guidance",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.find_unused", "trainer.precision",
    "trainer.accumulate", "trainer.workers", "trainer.log_every", "trainer.validate_every", "trainer.checkpoint_every",
    "trainer.progress_bar", "trainer.compile", "trainer.checkpoint_activations", "cluster.nodes", "cluster.gpus_per_node",
    "host", "port", "max_items", "max_waiting", "max_megabytes", "max_seconds", "classes", "cluster.cpus_per_task",
    "cluster.time", "callbacks.collapse_below", "callbacks.collapse_steps", "logger.csv",
    "logger.tensorboard", "sampler.temperature", "inputs", "message", "card", "parts",
)  # fmt: skip
"""Keys that cannot be null."""


def check_values(config: Mapping[str, Any]) -> None:
    """Raises ConfigError, one line, on the first value of a composed configuration that cannot be meant."""
    for key, takes in SETTINGS.items():
        value = _get(config, key)
        given = _get(config, key, ...) is not ...
        if value in (None, "???") and not (given and key in NEEDED):
            continue
        if key == "guidance_schedule" and re.fullmatch(r"cosine:\d+(\.\d+)?", str(value)):
            continue  # its power is checked where it is used
        try:
            check_setting(key, value, takes)
        except ValueError as error:
            near = nearest_name(value, words_of(takes)) if isinstance(value, str) else ""
            raise ConfigError(f"{error}{near if near.startswith('; did') else ''}") from None
    device = _get(config, "device")
    if device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(device)):
        raise ConfigError(f"device={device}: expected auto, cpu, cuda, cuda:N or mps")
    try:
        seconds(_get(config, "budget"))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _get(config: Any, key: str, missing: Any = None) -> Any:
    for part in key.split("."):
        config = config.get(part, missing) if isinstance(config, Mapping) else missing
    return config
