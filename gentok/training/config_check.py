"""What can be known to fail before anything is built, data included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentok.build import check, resolve
from gentok.errors import ConfigError
from gentok.interfaces import Augmentation, Consistency, Generator, MediaData, Optimizer, Schedule, Tokenizer
from gentok.sampling import pick_sampler
from gentok.training.loggers import check_loggers
from gentok.training.processes import check_devices
from gentok.value_checks import check_values

__all__ = ["check_config"]


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ConfigError on what can be known to fail before anything is built, data included."""
    kind, trust = config["task"]["name"], config["trust"]
    check_values(config)
    check_devices(config["trainer"], config["batch_size"])
    if config["data"] and not config["describe"]:  # {}: a program's own; a description needs none
        check(config["data"], trust=trust, where="data", role=MediaData)
    if config["task"].get("augment"):
        check(config["task"]["augment"], trust=trust, where="task.augment", role=Augmentation)
    check(config["optimizer"], where="optimizer", role=Optimizer)
    check(config["schedule"], where="schedule", role=Schedule)
    check_loggers(config["logger"])
    if kind == "tokenizer":
        if "_target_" not in config["tokenizer"]:
            raise ConfigError("task=tokenizer trains a tokenizer: choose one, such as tokenizer=vqgan (not tokenizer=from_bundle)")
        check(config["tokenizer"], trust=trust, where="tokenizer", given=("media_shape", "condition_spec"), role=Tokenizer)
        if config.get("discriminator"):
            check(config["discriminator"], trust=trust, where="discriminator", given=("channels",))
            if config["trainer"]["strategy"] == "fsdp":
                raise ConfigError(
                    "trainer=fsdp trains generators, and tokenizers without a discriminator: set trainer=ddp, or discriminator=none"
                )
        if config.get("balancer"):
            check(config["balancer"], where="balancer")
        if config.get("consistency"):
            check(config["consistency"], trust=trust, where="consistency", role=Consistency)
            if config["trainer"]["strategy"] == "fsdp":
                raise ConfigError("trainer=fsdp gathers weights for one pass of an encoder, and consistency makes two: set trainer=ddp")
    else:
        given = ("spec", "condition_spec", "codebook")
        check(config["generator"], trust=trust, where="generator", given=given, role=Generator)
        if config.get("discriminator"):
            raise ConfigError("a discriminator belongs to task=tokenizer: set discriminator=none")
        if config.get("balancer"):
            raise ConfigError("a balancer belongs to task=tokenizer: set balancer=none")
        if config.get("consistency"):
            raise ConfigError("consistency belongs to task=tokenizer: set consistency=none")
        pick_sampler(config["sampler"], resolve(config["generator"]["_target_"], trust), trust)
