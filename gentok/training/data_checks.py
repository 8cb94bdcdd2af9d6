"""Where data and a tokenizer meet: kinds, rates and channels are checked, and the longest item says how many frames a generator models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gentok.build import resolve
from gentok.bundle import Bundle
from gentok.errors import ConfigError, counted
from gentok.interfaces import MediaData, Tokenizer

__all__ = ["bind_to_data", "check_media", "fit_to_items"]

_KINDS = {"audio": "sounds", "image": "pictures"}


def check_media(tokenizer: Mapping[str, Any], data: MediaData, trust: Iterable[str] = ()) -> None:
    """Checks a configured tokenizer against the data, before anything is built.

    Of one that takes what the tokenizer inside it takes (prefix) that one counts: `fit_to_items` looks at it.

    Args:
        tokenizer: its configuration.
        data: the data component.
        trust: packages whose components may be built.

    Raises:
        ConfigError: it is of pictures and the data are sounds or the other way round, or their rates differ.
    """
    component = resolve(tokenizer["_target_"], trust)
    wanted, rate = tokenizer.get("sample_rate"), data.sample_rate
    found = "image" if rate is None else "audio"
    if issubclass(component, Tokenizer) and component.modality not in (None, found):
        raise ConfigError(
            f"{component.__name__} is a tokenizer of {_KINDS[component.modality]}, the data are {_KINDS[found]}: choose another tokenizer, "
            "or other data"
        )
    if rate is not None and wanted is not None and wanted != rate:
        raise ConfigError(f"data.sample_rate={rate}, tokenizer.sample_rate={wanted}: set both to the same rate")


def bind_to_data(tokenizer: Mapping[str, Any], data: MediaData, trust: Iterable[str] = ()) -> dict[str, Any]:
    """A tokenizer's configuration with what it leaves to the data.

    Args:
        tokenizer: the configuration.
        data: the data component.
        trust: packages whose components may be built.

    Raises:
        ConfigError: the data do not fit it.
    """
    component = resolve(tokenizer["_target_"], trust)
    return component.bind_to_data(tokenizer, data.condition_spec) if issubclass(component, Tokenizer) else dict(tokenizer)


def fit_to_items(bundle: Bundle, data: MediaData) -> None:
    """Gives a frozen tokenizer of sound the frames of these data's longest item, which a generator then models. Its codes and fingerprint
    stay. Raises ConfigError where rate or channels are others."""
    spec, rate = bundle.spec, data.sample_rate
    found = "image" if rate is None else "audio"
    if spec.modality != found:
        raise ConfigError(f"this is a tokenizer of {_KINDS[spec.modality]}, the data are {_KINDS[found]}: choose other data")
    if rate is None:
        return
    channels = spec.media_shape[0]
    if (spec.sample_rate, channels) != (rate, data.media_shape[0]):
        raise ConfigError(
            f"this tokenizer takes sound of {counted(channels, 'channel')} at {spec.sample_rate} Hz, the data have {data.media_shape[0]} "
            f"at {rate} Hz: set data.sample_rate={spec.sample_rate} and data.channels={channels}"
        )
    bundle.tokenizer.spec = bundle.tokenizer.fit_to_items(data.longest_item, data.condition_spec)
    bundle.tokenizer_config = {**bundle.tokenizer_config, "media_shape": [channels, data.longest_item]}
