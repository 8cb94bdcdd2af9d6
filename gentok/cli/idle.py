"""Settings that cannot act in a run, each said in one line: the run itself is as asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["idle_settings"]

ELSEWHERE = {
    "tokenizer": {"generator": "task=generator", "sampler": "task=generator"},
    "generator": dict.fromkeys(("codebook", "losses"), "the training of a tokenizer, which is done"),
}
"""Task -> group of conf/ -> what it is of."""
PROCESSES = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""The keys of `trainer` by which sampling and evaluation share their work."""


def idle_settings(config: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """A line for every setting that has no effect.

    Args:
        config: a composed conf/config.yaml, or the configuration of another command.
        words: the overrides of the command line.
    """
    if "task" not in config:
        keys = [word.lstrip("+").partition("=")[0] for word in words]
        return [f"{key} is of training and has no effect here" for key in keys if key.startswith("trainer.") and key not in PROCESSES]
    lines = []
    elsewhere = ELSEWHERE.get(config["task"]["name"], {})
    for word in words:
        group = word.lstrip("+~").partition("=")[0].split(".")[0]
        if group in elsewhere:
            lines.append(f"{word} is of {elsewhere[group]} and has no effect on task={config['task']['name']}")
    steps = config["steps"]
    if steps is None:
        return lines
    warmup = config["schedule"].get("warmup", 0)
    if warmup >= steps and any(word.startswith("schedule.warmup=") for word in words):
        lines.append(f"schedule.warmup={warmup} is not over in steps={steps}: the learning rate never reaches optimizer.lr")
    for name, adversary in ((config.get("discriminator") or {}).get("adversaries") or {}).items():
        if adversary.get("start", 0) >= steps:
            lines.append(f"discriminator.adversaries.{name}.start={adversary['start']} is beyond steps={steps}: it never acts")
    return lines
