"""What tokenizers that learn from transcripts take from the data: the alphabet of its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gentok.errors import ConfigError
from gentok.types import ConditionSpec, IdsSpec

__all__ = ["bound_to_texts", "text_of"]


def bound_to_texts(config: Mapping[str, Any], condition_spec: ConditionSpec) -> dict[str, Any]:
    """A tokenizer's configuration with the `symbols`, and the `longest_text` where it has such a key, of the data's texts.

    Args:
        config: of the tokenizer.
        condition_spec: of the data.

    Raises:
        ConfigError: the data have no texts, or texts of other symbols than are configured.
    """
    text, bound = text_of(condition_spec, config.get("symbols")), dict(config)
    bound["symbols"] = list(text.alphabet)
    if "longest_text" in bound and bound["longest_text"] is None:
        bound["longest_text"] = text.max_length
    return bound


def text_of(condition_spec: ConditionSpec, symbols: Sequence[str] | None = None) -> IdsSpec:
    """The texts among the conditions. Raises ConfigError where there are none, or of other symbols than `symbols` (None: any)."""
    text = dict(condition_spec.parts).get("text")
    if text is None or text.kind != "ids":
        raise ConfigError("this tokenizer learns from transcripts, the data have none: set data.captions=ids, or choose data with texts")
    if symbols is not None and tuple(symbols) != text.alphabet:
        raise ConfigError(
            f"tokenizer.symbols={''.join(symbols)!r}, the transcripts' are {''.join(text.alphabet)!r}: set tokenizer.symbols=null"
        )
    return text
