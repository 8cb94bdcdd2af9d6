"""Components: the classes that a configuration may name, each under an id that survives a move and a new class name.

A component says its id in its header, and nothing else is edited::

    class VQ(Codebook, id="codebook/vq"):
        ...

Bundles and checkpoints store ids; conf/ names classes by their place (`_target_: gentok.codebooks.vq.VQ`). `component_ids` finds the
ids by reading the files of a package, so a class that moves to another file, or gets another name, keeps every stored model readable as
long as its header keeps the id. Stored models may build components and nothing else: a function, or a class without an id, cannot be
reached from a file.

The part before the slash is the role. Which role fits where is said by the annotations of constructors: `codebook: Codebook` takes a
codebook (gentok/build.py).
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gentok.settings import CheckedDataclass, checked_call

__all__ = ["Component", "LocalPath", "component_ids"]

LocalPath = Annotated[str, Field(min_length=1), "a path or an address"]
"""A constructor's argument that names a file, a folder or an address. A stored model may not set it."""

_HEADER = re.compile(r'^class (\w+)\([^:]*?\bid="([\w/]+)"', re.MULTILINE)


class Component(CheckedDataclass):
    """Base of every class that a configuration may build. Arguments are checked against the annotations of the constructor.

    Attributes:
        component_id: "role/name" of the class itself; None for a base class. It is not inherited.
    """

    component_id: ClassVar[str | None] = None

    def __init_subclass__(cls, id: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.component_id = id
        if "__init__" in vars(cls):  # a dataclass gets its own later, and __post_init__ checks its fields
            cls.__init__ = checked_call(cls.__init__)  # type: ignore[method-assign]


@lru_cache
def component_ids(package: str = "gentok") -> dict[str, str]:
    """The components of a package, found by its files, none of which is imported.

    Args:
        package: its name, such as "gentok" or that of a package of your own.

    Returns:
        {id: "module.Class"}; {} where there is no such package.

    Raises:
        ValueError: two classes have the same id.
    """
    found: dict[str, str] = {}
    spec = importlib.util.find_spec(package)
    roots = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    files = [(root, path) for root in roots for path in sorted(root.rglob("*.py"))]
    if spec is not None and not roots and spec.origin:
        files = [(Path(spec.origin).with_suffix(""), Path(spec.origin))]
    for root, path in files:
        parts = path.relative_to(root).with_suffix("").parts if path.is_relative_to(root) else ()
        module = ".".join([package, *(part for part in parts if part != "__init__")])
        for name, own in _HEADER.findall(path.read_text(encoding="utf-8")):
            if found.setdefault(own, f"{module}.{name}") != f"{module}.{name}":
                raise ValueError(f"the component id {own!r} is used twice: by {found[own]} and by {module}.{name}")
    return found
