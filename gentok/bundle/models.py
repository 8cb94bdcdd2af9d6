"""Tokenizers and generators from their configurations, whether these come from conf/ or from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gentok.build import build, component_name, resolve
from gentok.errors import ConfigError
from gentok.interfaces import Generator, Tokenizer
from gentok.types import ConditionSpec

__all__ = ["build_generator", "build_tokenizer", "without_training"]


def without_training(config: Mapping[str, Any], trust: Iterable[str] = ()) -> dict[str, Any]:
    """A tokenizer's configuration without what neither codes nor media depend on (its losses and teachers)."""
    unneeded = getattr(resolve(config["_target_"], trust), "training_only", ())  # a class of your own may be no Tokenizer
    return {key: value for key, value in config.items() if key not in unneeded}


def build_tokenizer(
    config: Mapping[str, Any], trust: Iterable[str] = (), *, training: bool = False, stored: bool = False, **given: Any
) -> Tokenizer:
    """A tokenizer from its configuration.

    Args:
        config: with a `_target_`.
        trust: packages beside gentok whose components may be built.
        training: also build its losses and teachers, which it needs for nothing else.
        stored: the configuration was read from a file (see `gentok.build.check`).
        given: media_shape, where the configuration leaves it to the data.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    if not training and "_target_" in config:
        kept = without_training(config, trust)
        config = {key: value if key in kept else None for key, value in config.items()}
    return build(config, trust=trust, where="tokenizer", role=Tokenizer, stored=stored, **given)


def build_generator(
    config: Mapping[str, Any], tokenizer: Tokenizer, condition_spec: ConditionSpec, trust: Iterable[str] = (), *, stored: bool = False
) -> Generator:
    """A generator for the tokens of `tokenizer`; one that needs code vectors is handed its codebook, one that
    learns from another is handed that. It is not conditioned on what the
    tokenizer writes into its codes. Raises ConfigError where the tokens have a grammar that this generator does not follow, or are latents
    and it models codes alone."""
    kind, name = resolve(config["_target_"], trust), component_name(config)
    if tokenizer.spec.grammar and not getattr(kind, "follows_grammar", False):
        raise ConfigError(f"these tokens have a grammar, which {name} does not follow: choose generator=autoregressive")
    if not tokenizer.spec.vocab_sizes and not getattr(kind, "models_latents", False):
        raise ConfigError(
            f"this tokenizer ({type(tokenizer).__name__}) encodes to latents, and {name} models codes: choose generator=xar or mar, or "
            "a tokenizer with a codebook"
        )
    left = condition_spec.without(tokenizer.written_condition)
    given = {"spec": tokenizer.spec, "condition_spec": left, "codebook": tokenizer.codebook}
    nested = [key for key in getattr(kind, "inner", ()) if isinstance(config.get(key), Mapping) and "_target_" in config[key]]
    for key in nested:
        given[key] = build_generator(config[key], tokenizer, condition_spec, trust, stored=stored)
    config = {key: value for key, value in config.items() if key not in nested}
    return build(config, trust=trust, where="generator", role=Generator, stored=stored, **given)
