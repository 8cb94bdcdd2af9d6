"""Tokenizers that work on another, trained one, which their own bundle then holds; and tokenizers that need no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gentok.build import resolve
from gentok.bundle.fingerprints import stamp
from gentok.bundle.model import Bundle, load
from gentok.bundle.models import build_tokenizer, without_training
from gentok.errors import ConfigError
from gentok.types import ConditionSpec

__all__ = ["nest_inner", "pretrained"]


def nest_inner(
    config: Mapping[str, Any], trust: Iterable[str] = (), *, shape_only: bool = False
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A tokenizer's configuration with that of the tokenizer inside it in the place of {ckpt: BUNDLE}.

    Args:
        config: a tokenizer's; which of its keys hold a tokenizer is said by its class (`Tokenizer.inner`).
        trust: packages beside gentok whose components may be built.
        shape_only: an inner tokenizer without a bundle, described by its sizes, is left as it is.

    Returns:
        (the configuration, (key, BUNDLE) of the tokenizer whose weights it takes, or None).

    Raises:
        ConfigError: the bundle is missing or of other sizes than are given beside it.
        OSError: it cannot be read.
    """
    config, component = dict(config), resolve(config["_target_"], trust)
    for name, sizes_of in getattr(component, "inner", {}).items():  # a class of your own may be no Tokenizer
        given = config.get(name)
        if not isinstance(given, Mapping) or "_target_" in given:
            continue
        if given.get("ckpt") is None:
            if shape_only:
                continue
            raise ConfigError(f"{component.__name__} works on another tokenizer, its {name}: give its bundle, tokenizer.{name}.ckpt=BUNDLE")
        inner = load(given["ckpt"], trust=trust)
        for key, found in sizes_of(inner.spec).items():
            if given.get(key) not in (None, found):
                raise ConfigError(f"tokenizer.{name}.{key}={given[key]}, but {given['ckpt']} makes {name} of {key} {found}")
        config[name] = without_training(inner.tokenizer_config, trust)
        return config, (name, str(given["ckpt"]))
    return config, None


def pretrained(config: Mapping[str, Any], media_shape: Iterable[int], trust: Iterable[str] = ()) -> Bundle:
    """A tokenizer that needs no training, as the bundle that it would be, with fingerprints, in eval mode: one that others trained
    (gentok/tokenizers/pretrained), or that only rewrites what a trained one inside gives (speech_text, prefix).

    Raises ConfigError where `config` is of a tokenizer that has to be trained first.
    """
    rewrites = not getattr(resolve(config["_target_"], trust), "needs_training", True)  # a class of your own may be no Tokenizer
    config, inner = nest_inner(config, trust) if rewrites else (dict(config), None)
    tokenizer = build_tokenizer({**config, "media_shape": config.get("media_shape") or list(media_shape)}, trust)
    if inner is not None:
        name, path = inner
        getattr(tokenizer, name).load_state_dict(load(path, trust=trust).tokenizer.state_dict())
    if tokenizer.needs_training:
        raise ConfigError(
            f"{type(tokenizer).__name__} as configured has random weights: train it with task=tokenizer, then give its bundle by "
            "tokenizer=from_bundle tokenizer.ckpt=PATH"
        )
    config = tokenizer.portable({**config, "media_shape": list(tokenizer.spec.media_shape or ())})
    stamp(tokenizer, config)
    tokenizer.eval().requires_grad_(False)
    return Bundle("tokenizer", tokenizer, None, ConditionSpec(), without_training(config, trust), trust=tuple(trust))
