"""Settings of components: ranges that constructors name in their annotations, and the check of a value against an annotation.

A constructor says what it takes, `vocab_size: PositiveInt`, and that is all: the configuration is checked against it before anything is
built, and a call from Python when it is made (gentok/interfaces/component.py). Pydantic does the checking, strictly: no text is a number,
no float a whole number, and `no` is no boolean.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AllowInfNan,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

__all__ = [
    "CheckedDataclass", "Count", "Fraction", "FractionBelow1", "NonNegativeFloat", "NonNegativeInt", "NonNegativeOrInf", "PositiveFloat",
    "PositiveFraction", "PositiveInt", "PositiveInts", "PositiveOrInf", "VocabSize", "check_setting", "checked_call", "type_hints",
    "words_of",
]  # fmt: skip

Count = Annotated[int, Field(ge=1, le=1024)]
"""A number of layers, levels or blocks, each with weights of its own."""
VocabSize = Annotated[int, Field(ge=1, le=1 << 28)]
"""V of a table."""
PositiveInts = Annotated[Sequence[PositiveInt], Field(min_length=1, max_length=256)]
"""One whole number above 0 or more, such as the widths of layers."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share or probability, in [0, 1]."""
FractionBelow1 = Annotated[float, Field(ge=0, lt=1)]
"""A share, in [0, 1)."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""A share, in (0, 1]."""
NonNegativeOrInf = Annotated[float, Field(ge=0), AllowInfNan(True)]
"""A float of at least 0, or infinity."""
PositiveOrInf = Annotated[float, Field(gt=0), AllowInfNan(True)]
"""A float above 0, or infinity."""

_GROUP = "keys and values ('{{a: 1}}', with the quotes)"
_WORDS = {
    "bool_type": "true or false", "int_type": "a whole number", "float_type": "a number", "string_type": "text", "list_type": "a list",
    "is_sequence_of": "a list", "tuple_type": "a list", "mapping_type": _GROUP, "dict_type": _GROUP,
    "finite_number": "a finite number", "string_too_short": "text of at least {min_length} character",
    "too_short": "a list of at least {min_length}", "too_long": "a list of at most {max_length}",
    "greater_than": "a number above {gt:g}", "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}", "less_than_equal": "a number of at most {le:g}",
}  # fmt: skip
"""Pydantic's kinds of mistakes, in our words."""
_PLAIN = (int, float, str, bool, bytes, type(None))
_Function = TypeVar("_Function", bound=Callable[..., Any])


def check_setting(name: str, value: Any, annotation: Any) -> None:
    """Raises ValueError, one line, where a plain value does not fit an annotation.

    Args:
        name: of the setting, for the message, such as "optimizer.lr".
        value: of a configuration. What no configuration can hold (a module, a tensor) is not looked at.
        annotation: a type, with ranges (`PositiveInt`, `Literal["a", "b"]`, ...). Classes of objects are not looked at.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return
    try:
        adapter.validate_json(text, strict=True)
    except ValidationError as error:
        alone = isinstance(value, str) and error.errors()[-1]["type"] == "list_type"
        advice = f", such as {name.rpartition(': ')[2]}=[{value}]" if alone else ""
        raise ValueError(f"{name}={_shown(value)}: {_reason(error)}{advice}") from None


def checked_call(function: _Function) -> _Function:
    """A constructor that checks its arguments against its annotations before it runs."""
    names = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        hints = type_hints(function)
        for name, value in (*zip(names[1:], args), *kwargs.items()):  # *args of a signature do not occur here
            if name in hints:
                check_setting(f"{type(self).__name__}: {name}", value, hints[name])
        return function(self, *args, **kwargs)

    return typing.cast("_Function", call)


class CheckedDataclass:
    """Base of dataclasses that check their fields against their annotations. Raises ValueError, one line."""

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            check_setting(f"{type(self).__name__}: {field.name}", getattr(self, field.name), hints[field.name])


@cache
def type_hints(function: Any) -> dict[str, Any]:
    """The annotations of a function or class; {} where they name what cannot be found, as those of foreign code may."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}


def words_of(annotation: Any) -> tuple[str, ...]:
    """The words that an annotation allows, of all its parts."""
    own = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    return (*(w for w in own if isinstance(w, str)), *(w for part in typing.get_args(annotation) for w in words_of(part)))


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    plain = _plain(annotation)
    return None if plain is Any else TypeAdapter(plain, config=ConfigDict(allow_inf_nan=False))


def _plain(annotation: Any) -> Any:
    """The annotation with Any for every class whose objects no configuration holds as they are."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is os.PathLike or origin is os.PathLike:
        return Annotated[str, Field(min_length=1)]
    if annotation in _PLAIN or annotation in (list, tuple, dict) or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_plain(parts[0]), *parts[1:])]
    if origin in (typing.Union, types.UnionType):
        inner = tuple(_plain(part) for part in parts)
        return Any if Any in inner else typing.Union[inner]  # noqa: UP007
    if origin in (list, tuple, dict) or (inspect.isclass(origin) and origin.__module__ == "collections.abc" and parts):
        inner = tuple(part if part is ... else _plain(part) for part in parts)
        return Any if issubclass(origin, Callable) else origin[inner]  # type: ignore[arg-type]
    return Any


def _shown(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (bool, list, dict, type(None))) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reason(error: ValidationError) -> str:
    reasons = dict.fromkeys(
        (_WORDS[item["type"]].format_map(item.get("ctx", {})) if item["type"] in _WORDS else item["msg"].replace("Input should be ", ""))
        + (f" as item {item['loc'][0]}" if item["loc"] and isinstance(item["loc"][0], int) else "")
        for item in error.errors(include_url=False)
    )
    return f"expected {' or '.join(reasons)}"
