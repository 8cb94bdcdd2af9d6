"""Whether a change breaks the public API: what the names that the reference shows take is compared with public_api.txt beside this file.

    python docs/site/public_api.py          the changes, in words; status 1 where something breaks, or the listing is not up to date
    python docs/site/public_api.py write    renews the listing

The source is read by griffe and not imported. Public is what stands in `__all__` of gentok and of the modules of the reference's rooms;
of classes that others build upon (WHOLE) also their methods and attributes, of all others what they are made with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]
LISTING = Path(__file__).with_suffix(".txt")
ROOMS = ("types", "interfaces", "codebooks", "tokenizers", "generators", "samplers", "watermarks", "flow", "losses", "metrics", "data")
MODULES = ("bundle.model", "sampling", "certification", "rng", "errors", "training.own_data", "serving.app")
WHOLE = (
    "types", "interfaces", "bundle.model", "rng", "generators.base", "samplers.base", "samplers.request", "codebooks.base",
    "tokenizers.base",
)  # fmt: skip
"""Modules and packages whose classes are listed with their members."""


def listing(root: Path = ROOT) -> str:
    """The public API of a tree, as a module of stubs: a class per module, which holds its public names.

    Args:
        root: the folder that holds gentok.
    """
    package = griffe.load("gentok", search_paths=[str(root)], allow_inspection=False)
    lines = ['"""Made by public_api.py: what is public, and what it takes."""', "", "class gentok:"]
    given = [name for name, found in package.members.items() if found.is_alias and found.target_path.startswith("gentok.")]
    lines += [f"    {name} = ..." for name in given if name != "MovedModules"]
    for module in _modules(package):
        path = module.path.removeprefix("gentok.")
        body = [line for name in sorted(map(str, module.exports or ())) for line in _stub(module, name, path)]
        lines += ["", f"class {path.replace('.', '__')}:", *(f"    {line}" for line in body)] if body else []
    return "\n".join(lines) + "\n"


def _modules(package: Any) -> Iterator[Any]:
    def below(module: Any) -> Iterator[Any]:
        yield module
        for name in sorted(module.modules):
            if not name.startswith("_"):
                yield from below(module.modules[name])

    for path in MODULES:
        yield package[path]
    for room in ROOMS:
        yield from below(package[room])


def _stub(module: Any, name: str, path: str) -> list[str]:
    """The lines of a public name of a module; none where it comes from another module, which lists it."""
    value = module.members.get(name)
    if value is None or value.is_alias:
        return []
    if value.is_function:
        return [f"def {name}({_parameters(value.parameters)}): ..."]
    if not value.is_class:
        return [f"{name} = ..."]
    lines = [f"class {name}:", f"    def __init__({_parameters(value.parameters)}): ..."]
    if any(path == part or path.startswith(part + ".") for part in WHOLE):
        for member in value.members.values():
            if member.name.startswith("_") or member.is_alias or member.is_class:
                continue
            takes = f"def {member.name}({_parameters(member.parameters)}): ..." if member.is_function else f"{member.name} = ..."
            lines.append(f"    {takes}")
    return lines


def _parameters(parameters: Any) -> str:
    """Names, kinds and defaults, without annotations."""
    out, kinds = [], griffe.ParameterKind
    stars = any(p.kind is kinds.var_positional for p in parameters)
    for i, p in enumerate(parameters):
        if p.kind is kinds.keyword_only and not stars:
            out.append("*")
            stars = True
        prefix = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(p.kind, "")
        default = "" if p.default is None or prefix else f"={p.default}"
        out.append(f"{prefix}{p.name}{default}")
        following = parameters[i + 1].kind if i + 1 < len(parameters) else None
        if p.kind is kinds.positional_only and following is not kinds.positional_only:
            out.append("/")
    return ", ".join(out)


def breaks(old: str, new: str) -> list[str]:
    """What breaks between two listings, a line each, by griffe's rules."""
    with griffe.temporary_visited_module(old) as before, griffe.temporary_visited_module(new) as after:
        return [_line(found) for found in griffe.find_breaking_changes(before, after)]


def _line(found: Any) -> str:
    place = ".".join(found.obj.path.split(".")[1:]).replace("__init__", "()").replace("__", ".")
    change = " -> ".join(str(value) for value in (found.old_value, found.new_value) if value is not None)
    return f"gentok.{place.removeprefix('gentok.')}: {found.kind.value}: {change}"


def main(words: list[str]) -> int:
    """The command. Returns its status."""
    old, new = LISTING.read_text() if LISTING.exists() else "", listing()
    found = breaks(old, new)
    print("\n".join(found), end="\n" if found else "")
    if words == ["write"]:
        LISTING.write_text(new)
        return 0
    if found:
        print("the public API breaks: keep what was there, or declare the break (docs/CONTRIBUTING.md)")
    elif old != new:
        print("the public API has grown: python docs/site/public_api.py write")
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
