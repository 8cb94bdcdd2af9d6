"""Fingerprints: what tells two tokenizers apart, and a damaged one from what its header describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gentok.build import identify
from gentok.interfaces import Tokenizer
from gentok.interfaces.format1 import COMPONENTS
from gentok.types import TokenSpec, fingerprint

__all__ = ["stamp"]

_FORMAT_1 = {own: name for name, own in COMPONENTS.items()}


def stamp(tokenizer: Tokenizer, config: Mapping[str, Any]) -> TokenSpec:
    """Puts fingerprints into `tokenizer.spec`.

    The encode fingerprint is over every tensor and setting that codes depend on: all but the parts named in `decode_only` and the
    settings named in `training_only`. The decode fingerprint is over the rest. Tensors count as float32, and components by names that
    never change (their ids, or what format 1 called them).

    Args:
        tokenizer: whose tensors count.
        config: its configuration.

    Returns:
        The new spec, which is `tokenizer.spec` from then on.
    """
    encode_state: dict[str, Tensor] = {}
    decode_state: dict[str, Tensor] = {}
    for name, value in tokenizer.state_dict().items():
        part = decode_state if name.split(".")[0] in tuple(tokenizer.decode_only) else encode_state
        part[name] = value.float() if value.is_floating_point() else value
    settings = {key: value for key, value in tokenizer.portable(config).items() if key not in tokenizer.training_only}
    spec = replace(tokenizer.spec, encode_fingerprint="", decode_fingerprint="")
    counted = spec
    if spec.modality == "audio":  # the longest item belongs to the data
        settings = {key: value for key, value in settings.items() if key not in tokenizer.data_settings}
        settings["media_shape"] = list(spec.media_shape or ())
        counted = replace(spec, grid=replace(spec.grid, n=None))  # type: ignore[arg-type]
    encode = fingerprint(_lasting_names(identify(settings)), counted.to_dict(), encode_state)
    tokenizer.spec = replace(spec, encode_fingerprint=encode, decode_fingerprint=fingerprint(encode, decode_state))
    return tokenizer.spec


def _lasting_names(config: Any) -> Any:
    if isinstance(config, Mapping):
        names = {key: _lasting_names(value) for key, value in config.items()}
        return {**names, "_target_": _FORMAT_1.get(config["_target_"], config["_target_"])} if "_target_" in config else names
    return [_lasting_names(item) for item in config] if isinstance(config, (list, tuple)) else config
