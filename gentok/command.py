"""Small commands: a function's arguments from the words of a command line, its errors as one line.

Commands with a configuration in conf/ are run by gentok/cli.py.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["run_command"]


def run_command(function: Callable[..., Any], argv: Sequence[str] | None, usage: str, positional: str | None = None) -> Any:
    """Calls a function with the words of a command line.

    Args:
        function: `key=value` among the words gives its parameter `key` the string `value`.
        argv: the words behind the command's name; None: those of this process.
        usage: the command as it should be written, for the message.
        positional: the parameter that a word without a key gives; it must be given.

    Returns:
        What `function` returns.

    Raises:
        SystemExit: with one line: the words do not fit, or `function` raised ValueError, OSError or
            ImportError.
    """
    words, keys = sys.argv[1:] if argv is None else list(argv), set(inspect.signature(function).parameters)
    given: dict[str | None, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        given |= {key: value} if equals and key in keys else {positional: word}
    wrong = len(given) < len(words) or not set(given) <= keys or any(word.startswith("-") for word in words)
    if wrong or (positional is not None and positional not in given):
        sys.exit(f"gentok: expected {usage}" + (f"; got {' '.join(words)}" if words else ""))
    try:
        return function(**given)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"gentok: {' '.join(str(error).split())}")
