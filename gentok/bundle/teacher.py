"""Generators that learn from another, trained one, which their own bundle then holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gentok.build import identify, resolve
from gentok.bundle.model import load
from gentok.errors import ConfigError
from gentok.types import ConditionSpec, TokenSpec

__all__ = ["nest_teacher"]


def nest_teacher(
    config: Mapping[str, Any], spec: TokenSpec, trust: Iterable[str] = (), condition_spec: ConditionSpec | None = None
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A generator's configuration with that of the generator inside it in the place of {ckpt: BUNDLE}.

    Args:
        config: a generator's; which of its keys hold a generator is said by its class (`Generator.inner`).
        spec: of the tokens that it is to model; one without a fingerprint is of any tokenizer of these sizes.
        trust: packages beside gentok whose components may be built.
        condition_spec: what both are conditioned on; None: not known.

    Returns:
        (the configuration, (key, BUNDLE) of the generator whose weights it takes, or None).

    Raises:
        ConfigError: the bundle is missing, holds no generator, or one of other tokens or conditions.
        OSError: it cannot be read.
    """
    config, component = dict(config), resolve(config["_target_"], trust)
    for name in getattr(component, "inner", ()):  # a class of your own may be no Generator
        given = config.get(name)
        if isinstance(given, Mapping) and "_target_" in given:
            continue
        path = given.get("ckpt") if isinstance(given, Mapping) else None
        if path in (None, "???"):
            raise ConfigError(
                f"{component.__name__} learns from a trained generator, its {name}: give its bundle, generator.{name}.ckpt=BUNDLE"
            )
        bundle = load(path, trust=trust)
        if bundle.generator is None:
            raise ConfigError(f"generator.{name}.ckpt={path} holds a tokenizer alone: give the bundle of a generator")
        theirs = bundle.spec if spec.encode_fingerprint else replace(bundle.spec, encode_fingerprint="")
        if not theirs.same_codes(spec):
            raise ConfigError(
                f"generator.{name}.ckpt={path} models {bundle.spec.describe()}, and the tokenizer makes {spec.describe()}: "
                "both must be of one tokenizer, whose bundle may be the generator's (tokenizer.ckpt)"
            )
        if condition_spec is not None and bundle.generator.condition_spec != condition_spec:
            raise ConfigError(
                f"generator.{name}.ckpt={path} is conditioned on {_named(bundle.generator.condition_spec)}, the data give "
                f"{_named(condition_spec)}: take the data that it was trained on"
            )
        config[name] = identify(bundle.generator.portable(bundle.generator_config or {}))
        return config, (name, str(path))
    return config, None


def _named(spec: ConditionSpec) -> str:
    return ", ".join(f"{name} {getattr(part, 'names', '')}".strip() for name, part in spec.parts) or "nothing"
