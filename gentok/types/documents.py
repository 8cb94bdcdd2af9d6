"""JSON that lies on disk, which may be damaged or come from a stranger: read within limits, sealed with a checksum over all that it says.

White space is no part of the seal; the order of keys is, since the parts of a condition have one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gentok.errors import FormatError

__all__ = ["check_seal", "parse", "seal"]

LIMIT = 64 << 20
"""Bytes of a document; a tokenizer of 100,000 captions stays below."""
DEPTH = 64
"""Levels of lists and groups inside each other."""


def parse(data: bytes, what: str) -> dict[str, Any]:
    """The group of keys that JSON text holds.

    Args:
        data: the text.
        what: it is, for messages, such as the file's path.

    Raises:
        FormatError: it is no JSON in UTF-8, no group of keys, too long, or too deep.
    """
    if len(data) > LIMIT:
        raise FormatError(f"{what} has {len(data):,} bytes; at most {LIMIT:,} are read")
    try:
        value = json.loads(data.decode())
        text = json.dumps(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is no JSON ({type(error).__name__}: {error}): it is damaged, cut off, or something else") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no group of keys; it begins with {text[:20]}")
    if _depth(value, DEPTH + 1) > DEPTH:
        raise FormatError(f"{what} nests values more than {DEPTH} levels deep: it is damaged, or not of gentok")
    return value


def _depth(value: Any, most: int) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 0 if most == 0 or not isinstance(value, (dict, list)) else 1 + max((_depth(item, most - 1) for item in inner), default=0)


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the key `checksum`."""
    content = {key: value for key, value in document.items() if key != "checksum"}
    return {**content, "checksum": hashlib.blake2b(json.dumps(content).encode(), digest_size=20).hexdigest()}


def check_seal(document: Mapping[str, Any], what: str) -> None:
    """Raises FormatError where a document is not what was sealed."""
    if document.get("checksum") != seal(document)["checksum"]:
        raise FormatError(f"{what} is not what was written there (its checksum differs): it was changed or damaged")
