"""Errors whose message is one line for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["ConfigError", "FormatError", "check_choice", "counted", "nearest_name"]


_LISTED, _LONG = 40, 1200


class _Line(ValueError):
    """An error whose message is one line, however long a value in it is."""

    def __init__(self, message: object):
        line = str(message).replace("\n", " ")
        super().__init__(line if len(line) <= _LONG else f"{line[: _LONG // 2]} ... {line[-_LONG // 2 :]}")


class ConfigError(_Line):
    """A configuration that cannot be built or run."""


class FormatError(_Line):
    """A file or a dictionary of a newer or another format; the message says what was expected and what
    came."""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """'; did you mean X?' for the closest of `names`, or the names themselves where none is close."""
    names = [str(n) for n in names]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there are: {', '.join(sorted(names)[:_LISTED])}{more}" if names else ""


def counted(number: int, noun: str) -> str:
    """'1 level', '2 levels'. noun: in the singular, one whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_choice(kind: str, value: Any, options: Iterable[Any]) -> None:
    """Checks a setting that is one of some values.

    Raises:
        ValueError: it is none of `options`; the message lists them. `kind`: what they name, such as "masking
            schedule".
    """
    options = list(options)
    if value not in options:
        raise ValueError(f"there is no {kind} {value!r}; choose one of {', '.join(map(str, options))}")
