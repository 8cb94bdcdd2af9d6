"""Another part in an experiment: `experiment=mnist5k/vq codebook=fsq`.

An experiment sets keys of the parts that it chose. A part that is chosen in their place comes with its own preset, conf/GROUP/CHOICE.yaml,
and takes none of these keys; what a person sets on the command line holds for the new part. Needs no hydra: it is handed `compose`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gentok.cli.config_errors import near_key
from gentok.errors import ConfigError

__all__ = ["exchange"]

PARTS = (
    "data", "codebook", "losses", "discriminator", "balancer", "consistency", "tokenizer", "generator", "sampler", "optimizer", "schedule",
)  # fmt: skip
"""Groups of conf/ whose choices differ in their keys."""


def exchange(
    config: Any, choices: Mapping[str, str], words: list[str], compose: Callable[[list[str]], tuple[Any, Mapping[str, str]]]
) -> list[str]:
    """Gives the parts that were chosen in the place of an experiment's their own presets.

    Args:
        config: the composed configuration, which is changed.
        choices: of every group, as composed.
        words: the overrides of the command line, as Hydra reads them.
        compose: (configuration, choices) of other words.

    Returns:
        A line for every part of the experiment whose settings are not used.

    Raises:
        ConfigError: a key that the new part lacks.
    """
    given = {word.partition("=")[0] for word in words}
    if not choices.get("experiment") or not given & set(PARTS):
        return []
    experiment = f"experiment={choices['experiment']}"
    own = compose([experiment])[1]
    changed = [part for part in PARTS if part in choices and choices[part] != own.get(part)]
    chosen = {part: choices[part] for part in PARTS if choices.get(part)}
    if "generator" in changed and "sampler" not in given and own.get("sampler") != "auto":
        changed, chosen["sampler"] = [*changed, "sampler"], "auto"  # the experiment's was for its generator
    values = [word for word in words if re.split(r"[.@=]", word.lstrip("+~"))[0] in changed and re.search(r"[.@]", word.partition("=")[0])]
    parts = [f"task={choices['task']}", *(f"{part}={choice}" for part, choice in chosen.items())]
    inside = [word for word in values if "@" in word.partition("=")[0]]  # choices of what is inside a part
    keys = _keys(compose([*parts, *inside])[0]) if values else []
    for word in values:
        key = word.partition("=")[0]
        if not key.startswith("+") and word not in inside and key.lstrip("~") not in keys:
            raise ConfigError(f"there is no key {key!r}{near_key(key, keys)}")
    preset = compose([*parts, *values])[0]
    lines = []
    for part in changed:
        before, after = _flat(config[part]), _flat(preset[part])
        config[part] = preset[part]
        unused = [key for key, value in before.items() if "_target_" not in key and after.get(key, ...) != value]
        if unused:
            what = f"{part}={chosen[part]} in the place of {own.get(part)}"
            lines.append(f"{what} has its own preset; what the experiment sets is not used: {', '.join(f'{part}.{key}' for key in unused)}")
    return lines


def _flat(node: Any, above: str = "") -> dict[str, Any]:
    """{dotted key: value}, interpolations as they are written."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if not isinstance(tree, dict):
        return {above.rstrip("."): tree} if above else {}
    return {key: value for name, inner in tree.items() for key, value in _flat(inner, f"{above}{name!s}.").items()}


def _keys(node: Any) -> list[str]:
    """All keys of a configuration, groups too."""
    flat = _flat(node)
    return list(dict.fromkeys(".".join(key.split(".")[: n + 1]) for key in flat for n in range(key.count(".") + 1)))
