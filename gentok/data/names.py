"""Names of files as text that can be shown and stored, and a few of many."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["first_few", "printable"]

_LISTED = 5
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(name: str) -> str:
    r"""A name with control characters, and bytes that are not UTF-8, written as escapes such as \n and \xe9: one line, in any file."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escape, name)


def first_few(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
