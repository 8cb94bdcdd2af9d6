"""Names of files as text that can be shown and stored, a few of many, and many by the reason why they are not used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["SPLITS", "Unused", "encodable", "first_few", "printable", "with_reasons"]

SPLITS = (
    *("train", "training", "trn", "val", "valid", "validation", "dev", "development", "test", "testing", "eval", "evaluation"),
    *("held_out", "held-out", "heldout", "holdout"),
)
"""Names that stand for splits, where there are only such."""
_LISTED, _KEPT = 5, 50
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(name: str) -> str:
    r"""A name with control characters, and bytes that are not UTF-8, written as escapes such as \n and \xe9: one line, in any file."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escape, name)


def encodable(text: str) -> str:
    """A text without characters that UTF-8 cannot hold, which JSON can: they are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def first_few(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def with_reasons(reasons: Mapping[str, str]) -> str:
    """The first five names of {name: reason}, each with its reason, and how many more there are."""
    return first_few([f"{name} ({reason})" for name, reason in reasons.items()])


class Unused:
    """Names of what lies at a place and is not used, by reason: how many, and the first 50 of each.

    Attributes:
        found: {reason: [count, names]}, for JSON. A reason follows a number: "ending in .txt", "hidden".
    """

    def __init__(self, found: Mapping[str, Any] | None = None):
        self.found: dict[str, Any] = {reason: [count, list(names)] for reason, (count, names) in (found or {}).items()}

    def add(self, reason: str, *names: str, count: int | None = None) -> None:
        """Adds names; `count`: how many they stand for, by default themselves."""
        entry = self.found.setdefault(reason, [0, []])
        entry[0] += len(names) if count is None else count
        entry[1] += names[: _KEPT - len(entry[1])]

    def update(self, other: Unused | Mapping[str, Any], prefix: str = "") -> None:
        """Adds those of another one, with `prefix` before their names."""
        for reason, (count, names) in (other.found if isinstance(other, Unused) else other).items():
            self.add(reason, *(prefix + name for name in names), count=count)

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.found.values())

    def reasons(self) -> dict[str, str]:
        """{name: reason} of the first 50 in all."""
        return dict([(name, reason) for reason, (_, names) in self.found.items() for name in names][:_KEPT])

    def __str__(self) -> str:
        most = sorted(self.found.items(), key=lambda entry: -entry[1][0])
        return first_few([f"{count:,} {reason} (such as {names[0]})" for reason, (count, names) in most])
