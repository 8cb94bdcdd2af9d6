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
        positional: the parameter that the first word without a key gives; it must be given, and further words go to those behind it.

    Returns:
        What `function` returns.

    Raises:
        SystemExit: with one line: the words do not fit, or `function` raised ValueError, OSError or
            ImportError.
    """
    words, signature = sys.argv[1:] if argv is None else list(argv), inspect.signature(function)
    named, plain = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in signature.parameters:
            named[key] = value
        else:
            plain.append(word)
    try:
        signature.bind(*plain, **named)
        wrong = len(named) + len(plain) < len(words) or (plain and positional is None) or any(word.startswith("-") for word in words)
    except TypeError:
        wrong = True
    if wrong:
        sys.exit(f"gentok: expected {usage}" + (f"; got {' '.join(words)}" if words else ""))
    try:
        return function(*plain, **named)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"gentok: {' '.join(str(error).split())}")
