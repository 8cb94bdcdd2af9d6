"""What a generator can be conditioned on, and how a user's words become a Condition."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from gentok.errors import ConfigError, FormatError
from gentok.types.conditions import NULL_CLASS, Class, Condition, Ids, Part, Vectors
from gentok.types.formats import CELLS, Size, strict
from gentok.types.kept_text import KEEP_TEXT, TEXT, kept_text
from gentok.types.tokens import ABSENT

__all__ = ["ClassSpec", "IdsSpec", "VectorsSpec", "ConditionSpec"]


@dataclass(frozen=True)
class ClassSpec:
    """Class names in the order of their ids."""

    names: tuple[str, ...]
    kind: str = "class"

    def parse(self, values: Sequence[Any], name: str) -> Class:
        return Class(torch.tensor([self._one(value, name) for value in values], dtype=torch.int64))

    def _one(self, value: Any, name: str) -> int:
        if value is None:
            return NULL_CLASS
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if word in self.names:
            return self.names.index(word)
        if word == "null":
            return NULL_CLASS
        if word.isascii() and word.isdigit() and int(word) < len(self.names):
            return int(word)
        shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
        raise ConfigError(
            f"{name}={value} is no class of this model; it has {len(self.names)}: {shown} (or an id 0..{len(self.names) - 1}, or null)"
        )


@dataclass(frozen=True)
class IdsSpec:
    """Symbols in the order of their ids, and the longest row. Where one has several characters, they are the words of a text."""

    alphabet: tuple[str, ...]
    max_length: Size
    kind: str = "ids"

    @property
    def of_words(self) -> bool:
        return any(len(symbol) > 1 for symbol in self.alphabet)

    def parse(self, values: Sequence[Any], name: str) -> Ids:
        out = torch.full((len(values), self.max_length), ABSENT, dtype=torch.int64)
        number = {symbol: i for i, symbol in enumerate(self.alphabet)}
        for row, value in enumerate(values):
            text = "" if value is None else str(value)
            symbols = text.split() if self.of_words else list(text)
            foreign = sorted({symbol for symbol in symbols if symbol not in number})
            if foreign:
                raise ValueError(f"{name}={text!r} has symbols that the model never saw: {foreign}; {self._known(foreign[0])}")
            if len(symbols) > self.max_length:
                raise ValueError(f"{name}={text!r} has {len(symbols)} symbols; this model takes at most {self.max_length}")
            out[row, : len(symbols)] = torch.tensor([number[symbol] for symbol in symbols], dtype=torch.int64)
        return Ids(out)

    def _known(self, foreign: str) -> str:
        if not self.of_words:
            return f"its alphabet is {''.join(self.alphabet)!r}"
        near = get_close_matches(foreign, self.alphabet)
        return f"it knows {len(self.alphabet)} words" + (f", such as {', '.join(near)}" if near else "")

    def text(self, ids: Sequence[int]) -> str:
        """The text of a row of ids, up to its end."""
        return (" " if self.of_words else "").join(self.alphabet[i] for i in ids if i >= 0)


@dataclass(frozen=True)
class VectorsSpec:
    """Width, longest row and the name of the frozen encoder that made the vectors."""

    width: Size
    max_length: Size
    encoder: str = ""
    kind: str = "vectors"

    def parse(self, values: Sequence[Any], name: str) -> Vectors:
        x = torch.zeros(len(values), self.max_length, self.width)
        mask = torch.zeros(len(values), self.max_length, dtype=torch.bool)
        for row, value in enumerate(values):
            if value is None:
                continue
            if isinstance(value, str):
                raise ConfigError(
                    f"{name}={value!r} is a text, and this model reads the vectors of {self.encoder or 'its encoder'}: name that encoder's "
                    "folder, text_encoder=FOLDER"
                )
            if not isinstance(value, Tensor) or value.dim() != 2 or value.shape[1] != self.width or len(value) > self.max_length:
                came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name} must be a float tensor [L <= {self.max_length}, {self.width}] made by "
                    f"{self.encoder or 'its encoder'}; got {came}"
                )
            x[row, : len(value)], mask[row, : len(value)] = value.float(), True
        return Vectors(x, mask)


_CONDITIONS = {"class": ClassSpec, "ids": IdsSpec, "vectors": VectorsSpec}


@dataclass(frozen=True)
class ConditionSpec:
    """What a generator is conditioned on: (name, part spec) pairs; lies in bundles and in the header of token shards."""

    parts: tuple[tuple[str, ClassSpec | IdsSpec | VectorsSpec], ...] = ()

    def parse(self, value: Any, batch: int, encode: Callable[[list[Any], VectorsSpec], list[Any]] | None = None) -> Condition:
        """A user's `condition=7`, `condition=horse`, `condition={class: [3, 4], text: "seven"}` as a Condition of `batch` rows.

        A scalar goes to the only part, or to the part named `class`; a list gives the rows in turn, repeated to fill the batch;
        None is null everywhere. Texts for a part of vectors become such by `encode`. `keep_text` beside the parts says which tokens of the
        part `text` media are generated from (gentok/types/kept_text.py). Raises ValueError, naming what the model understands.
        """
        names = [name for name, _ in self.parts]
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            target = "class" if "class" in names else names[0] if len(names) == 1 else None
            if target is None:
                raise ValueError(
                    f"condition={value}: this model is {'unconditional' if not names else 'conditioned on ' + ', '.join(names)}"
                )
            value = {target: value}
        keep = value.get(KEEP_TEXT)
        for name in value:
            if name not in (*names, KEEP_TEXT):
                raise ValueError(f"condition.{name}: this model is conditioned on {', '.join(names) or 'nothing'}")
        parts: dict[str, Part] = {}
        for name, spec in self.parts:
            given = value.get(name)
            row_values = list(given) if isinstance(given, (list, tuple)) else [given]
            if not row_values:
                raise ValueError(f"condition.{name}=[]: a list of at least one; leave it out, or null, for none")
            if encode is not None and isinstance(spec, VectorsSpec):
                row_values = encode(row_values, spec)
            parts[name] = spec.parse([row_values[i % len(row_values)] for i in range(batch)], f"condition.{name}")
        kept = None if keep is None else kept_text(keep, parts.get(TEXT))
        return Condition(parts if kept is None else {**parts, KEEP_TEXT: kept})

    def without(self, other: ConditionSpec) -> ConditionSpec:
        """The parts that `other` has no part of that name for."""
        taken = dict(other.parts)
        return ConditionSpec(tuple((name, part) for name, part in self.parts if name not in taken))

    def to_dict(self) -> dict[str, Any]:
        return {name: json.loads(json.dumps(dataclasses.asdict(spec))) for name, spec in self.parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConditionSpec:
        """The inverse of `to_dict`. Raises FormatError, one line, where it is of a newer format, damaged, or of an impossible size."""
        if not isinstance(values, Mapping):
            raise FormatError(f"the condition spec is no group of keys: {str(values)[:60]!r}")
        parts = []
        for name, part in values.items():
            kind = part.get("kind") if isinstance(part, Mapping) else part
            if not isinstance(kind, str) or kind not in _CONDITIONS:
                raise FormatError(f"the condition {name!r} is of kind {str(kind)[:60]!r}; this gentok knows {', '.join(_CONDITIONS)}")
            spec = _CONDITIONS[kind](**strict(_CONDITIONS[kind], part, f"the condition {name!r}"))
            if getattr(spec, "max_length", 1) * getattr(spec, "width", 1) > CELLS:  # classes have neither
                raise FormatError(f"the condition {name!r} is too large to be one: {part}")
            parts.append((name, spec))
        return cls(tuple(parts))
