"""Defective forms of a class, made by editing its source: the laws of the tests must reject them."""

from __future__ import annotations

import inspect
import sys
import textwrap

__all__ = ["mutant"]


def mutant(cls: type, *edits: tuple[str, str]) -> type:
    """cls with pieces of its source replaced: (right, wrong) pairs."""
    source = textwrap.dedent(inspect.getsource(cls))
    for right, wrong in edits:
        assert source.count(right) == 1, f"{right!r} must occur once in {cls.__name__}"
        source = source.replace(right, wrong)
    scope = dict(vars(sys.modules[cls.__module__]))
    exec(compile(source, f"<mutant of {cls.__name__}>", "exec"), scope)
    return scope[cls.__name__]
