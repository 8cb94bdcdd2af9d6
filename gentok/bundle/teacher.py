"""Generators that learn from another, trained one, which their own bundle then holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gentok.build import identify, resolve
from gentok.bundle.model import load
from gentok.errors import ConfigError
from gentok.types import TokenSpec

__all__ = ["nest_teacher"]


def nest_teacher(config: Mapping[str, Any], spec: TokenSpec, trust: Iterable[str] = ()) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A generator's configuration with that of the generator inside it in the place of {ckpt: BUNDLE}.

    Args:
        config: a generator's; which of its keys hold a generator is said by its class (`Generator.inner`).
        spec: of the tokens that it is to model.
        trust: packages beside gentok whose components may be built.

    Returns:
        (the configuration, (key, BUNDLE) of the generator whose weights it takes, or None).

    Raises:
        ConfigError: the bundle is missing, holds no generator, or one of other tokens.
        OSError: it cannot be read.
    """
    config, component = dict(config), resolve(config["_target_"], trust)
    for name in getattr(component, "inner", ()):  # a class of your own may be no Generator
        given = config.get(name)
        if isinstance(given, Mapping) and "_target_" in given:
            continue
        path = given.get("ckpt") if isinstance(given, Mapping) else None
        if path in (None, "???"):
            raise ConfigError(f"{component.__name__} learns from a trained generator, its {name}: give its bundle, generator.{name}.ckpt=BUNDLE")
        bundle = load(path, trust=trust)
        if bundle.generator is None:
            raise ConfigError(f"generator.{name}.ckpt={path} holds a tokenizer alone: give the bundle of a generator")
        if not bundle.spec.same_codes(spec):
            raise ConfigError(
                f"generator.{name}.ckpt={path} models {bundle.spec.describe()}, and the tokenizer makes {spec.describe()}: "
                "both must be of one tokenizer, whose bundle may be the generator's (tokenizer.ckpt)"
            )
        config[name] = identify(bundle.generator.portable(bundle.generator_config or {}))
        return config, (name, str(path))
    return config, None
