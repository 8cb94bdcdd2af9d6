"""Where sounds and a tokenizer meet: rate and channels are checked, and the longest item says how many frames a generator models."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gentok.build import ConfigError, resolve
from gentok.bundle import Bundle
from gentok.tokenizers.codec import Codec
from gentok.types import Frames

__all__ = ["check_media", "fit_to_items", "fit_to_texts"]


def check_media(tokenizer: Mapping[str, Any], data: Any, trust: Iterable[str] = ()) -> None:
    """Raises ConfigError where a configured tokenizer of gentok is of pictures and the data are sounds or the other way round, or where
    their rates differ. Of one that only rewrites another's codes (prefix) that one counts: `fit_to_items` looks at it."""
    if tokenizer.get("whole") is not None:
        return
    rate, component = getattr(data, "sample_rate", None), resolve(tokenizer["_target_"], trust)
    wanted = tokenizer.get("sample_rate")
    named = "sample_rate" in inspect.signature(component).parameters or hasattr(component, "samples_of")
    hears = named or (isinstance(component, type) and issubclass(component, Codec))
    if component.__module__.startswith("gentok.") and hears != (rate is not None):
        kinds = ("sounds", "pictures") if hears else ("pictures", "sounds")
        raise ConfigError(
            f"{component.__name__} is a tokenizer of {kinds[0]}, the data are {kinds[1]}: choose another tokenizer, or other data"
        )
    if rate is not None and wanted is not None and wanted != rate:
        raise ConfigError(f"data.sample_rate={rate}, tokenizer.sample_rate={wanted}: set both to the same rate")


def fit_to_items(bundle: Bundle, data: Any) -> None:
    """A frozen tokenizer of sound, for a generator of these data: its grid then has the frames of their longest item, and so have the
    generator's. Its codes and fingerprint stay. Raises ConfigError where rate or channels are others."""
    spec, rate = bundle.spec, getattr(data, "sample_rate", None)
    if (spec.modality == "audio") != (rate is not None):
        kinds = ("sounds", "pictures") if rate is None else ("pictures", "sounds")
        raise ConfigError(f"this is a tokenizer of {kinds[0]}, the data are {kinds[1]}: choose other data")
    if rate is None:
        return
    if (spec.sample_rate, spec.media_shape[0]) != (rate, data.media_shape[0]):
        raise ConfigError(
            f"this tokenizer takes sound of {spec.media_shape[0]} channel(s) at {spec.sample_rate} Hz, the data have {data.media_shape[0]} "
            f"at {rate} Hz: set data.sample_rate={spec.sample_rate} and data.channels={spec.media_shape[0]}"
        )
    if hasattr(bundle.tokenizer, "positions_of"):
        _check_alphabet(bundle.tokenizer.symbols, data)
        bundle.tokenizer.spec = replace(spec, grid=replace(spec.grid, n=bundle.tokenizer.positions_of(data.longest_item)))
        bundle.tokenizer_config = {**bundle.tokenizer_config, "media_shape": [spec.media_shape[0], data.longest_item]}
    if isinstance(spec.grid, Frames):
        several = spec.frame_multiple
        frames = -(-data.longest_item // (round(rate / spec.grid.rate_hz) * several)) * several
        bundle.tokenizer.spec = replace(spec, grid=replace(spec.grid, n=frames))
        bundle.tokenizer_config = {**bundle.tokenizer_config, "media_shape": [spec.media_shape[0], data.longest_item]}


def fit_to_texts(tokenizer: dict[str, Any], data: Any) -> None:
    """Fills in the `symbols` of a configured tokenizer that learns from transcripts: the alphabet of the data's text. ConfigError where
    there is none, or another one than is configured."""
    if "symbols" not in tokenizer:
        return
    text = _check_alphabet(tokenizer["symbols"], data)
    tokenizer["symbols"] = list(text.alphabet)
    if tokenizer.get("longest_text", 0) is None:
        tokenizer["longest_text"] = text.max_length


def _check_alphabet(wanted: Any, data: Any) -> Any:
    """The data's text. Raises ConfigError where there is none, or one of other symbols than `wanted` (None: any)."""
    text = dict(data.condition_spec.parts).get("text")
    if text is None or text.kind != "ids":
        raise ConfigError("this tokenizer learns from transcripts, the data have none: set data.captions=ids, or choose data with texts")
    if wanted is not None and tuple(wanted) != text.alphabet:
        raise ConfigError(
            f"tokenizer.symbols={''.join(wanted)!r}, the transcripts' are {''.join(text.alphabet)!r}: set tokenizer.symbols=null"
        )
    return text
