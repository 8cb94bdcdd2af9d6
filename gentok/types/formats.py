"""What words on disk are held to: unknown keys and values of another type stop with a line; fingerprints tell two of them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from gentok.errors import FormatError

__all__ = ["CELLS", "Size", "fitted", "strict", "fingerprint"]

Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""How many there are of something in a file."""
CELLS = 1 << 27
"""The most numbers that one item may have, of tokens or of a condition, as a file describes it."""


def strict(cls: type, values: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass as a file holds them.

    Args:
        cls: the dataclass, whose annotations say types and ranges.
        values: {field: plain JSON, or the object itself}.
        what: they describe, for messages.

    Returns:
        Arguments of the constructor, lists as tuples.

    Raises:
        FormatError: a key is unknown or missing, or a value does not fit.
    """
    if not isinstance(values, Mapping):
        raise FormatError(f"{what} is no group of keys: {str(values)[:60]!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise FormatError(f"{what} has the unknown key {unknown[0]!r}: it was written by a newer gentok; upgrade gentok to read it")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise FormatError(f"{what} lacks {name!r}: it is damaged")
    return fitted(values, _hints(cls), what)


def fitted(values: Mapping[str, Any], annotations: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Those values of a file that annotations speak of, held to them: text is no number, and 1.0 no whole one. Objects pass as they are.

    Raises FormatError, naming the first value that does not fit.
    """
    out = {}
    for name in values.keys() & annotations.keys():
        value = out[name] = values[name]
        if dataclasses.is_dataclass(value):
            continue
        try:
            out[name] = _adapter(annotations[name]).validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise FormatError(f"{what}: {where} is {str(first['input'])[:60]!r}: {first['msg']}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise FormatError(f"{what}: {name} is not plain JSON ({error})") from None
    return out


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def fingerprint(*parts: Any) -> str:
    """16 hex digits over tensors (dtype, shape, bytes), state dicts and JSON-able settings, in the order given."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            value = part.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for key in sorted(part):
                digest.update(key.encode())
                digest.update(fingerprint(part[key]).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
