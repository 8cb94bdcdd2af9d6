"""JSON that lies on disk, which may be damaged or come from a stranger: read within limits, sealed with a checksum over all that it says.

White space is no part of the seal; the order of keys is, since the parts of a condition have one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.errors import FormatError

__all__ = ["check_limits", "check_seal", "parse", "read", "seal"]

LIMIT = 64 << 20
"""Bytes of a document; a tokenizer of 100,000 captions stays below."""
DEPTH = 64
"""Levels of lists and groups inside each other."""
VALUES = 1_000_000
"""Of a document, keys included."""


def read(path: Path) -> dict[str, Any]:
    """The group of keys in a JSON file, as `parse`; of a longer file no more than the limit is read."""
    with path.open("rb") as file:
        return parse(file.read(LIMIT + 1), str(path))


def parse(data: bytes, what: str) -> dict[str, Any]:
    """The group of keys that JSON text holds.

    Args:
        data: the text.
        what: it is, for messages, such as the file's path.

    Raises:
        FormatError: it is no JSON in UTF-8, no group of keys, too long, or too deep.
    """
    if len(data) > LIMIT:
        raise FormatError(f"{what} is a document of more than {LIMIT:,} bytes: it is damaged, or not of gentok")
    try:
        value = json.loads(data.decode())
        text = json.dumps(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is no JSON ({type(error).__name__}: {error}): it is damaged, cut off, or something else") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no group of keys; it begins with {text[:20]}")
    check_limits(value, what)
    return value


def check_limits(value: Any, what: str) -> None:
    """Raises FormatError where groups and lists inside each other are too many or too deep to walk through; a list may hold itself, or
    another one twice, in what was not text."""
    left, waiting = VALUES, [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        left -= 1 + (len(inner) // 64 if isinstance(inner, (str, bytes)) else 0)
        if depth > DEPTH or left < 0:
            raise FormatError(f"{what} holds more than {VALUES:,} values, or more than {DEPTH} levels of them: it is not of gentok")
        if isinstance(inner, Mapping):
            waiting.extend((item, depth + 1) for pair in inner.items() for item in pair)
        elif isinstance(inner, (list, tuple, set, frozenset)):
            waiting.extend((item, depth + 1) for item in inner)


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the key `checksum`."""
    content = {key: value for key, value in document.items() if key != "checksum"}
    return {**content, "checksum": hashlib.blake2b(json.dumps(content).encode(), digest_size=20).hexdigest()}


def check_seal(document: Mapping[str, Any], what: str) -> None:
    """Raises FormatError where a document is not what was sealed."""
    if document.get("checksum") != seal(document)["checksum"]:
        raise FormatError(f"{what} is not what was written there (its checksum differs): it was changed or damaged")
