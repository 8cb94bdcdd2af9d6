"""Errors whose message is one line for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "FormatError", "nearest_name"]


class ConfigError(ValueError):
    """A configuration that cannot be built or run."""


class FormatError(ValueError):
    """A file or a dictionary of a newer or another format; the message says what was expected and what came."""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """'; did you mean X?' for the closest of `names`, or the names themselves where none is close."""
    names = [str(n) for n in names]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(names))}" if names else ""
