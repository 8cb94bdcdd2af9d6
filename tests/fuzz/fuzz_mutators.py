"""Ways to damage an input: bytes of any file, values of JSON, words of a command line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_engine import Mutation

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63 - 1, 2**64 - 1)
WRONG: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 1e-300, 1e300, 10**6, 10**9, 2**31, 2**63, 10**30, -(2**63), float("nan"),
    float("inf"), float("-inf"),
    "", "x", "0", "abc" * 2000, "../../etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x", "os.system", "codebook/vq",
    "tokenizer/kl", "data/folder", [], [[]], [1], [0], [-1], [10**9], ["x"], [None], {}, {"_target_": "os.system", "command": "true"},
    {"_target_": "codebook/fsq", "values": [3, 3]}, {"path": "/etc"}, {"kind": "class", "names": []}, "\u0000", "é\ud7ff", "null", "nan",
)  # fmt: skip


def damage_bytes(rng: random.Random, path: Path) -> Mutation:
    """One wound: bits, bytes, a run, a number, the end cut off, something behind it, or a part that moves."""
    data = bytearray(path.read_bytes())
    size = len(data)
    head = min(size, 4096)
    at = rng.randrange(head if rng.random() < 0.5 else size) if size else 0  # headers are the interesting part
    kind = rng.choice(["bit", "bit", "byte", "run", "zeros", "number", "number", "cut", "more", "drop", "twice", "swap"])
    length = rng.choice([1, 2, 4, 8, 16, 100, 1000])
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == "run":
        data[at : at + length] = rng.randbytes(len(data[at : at + length]))
    elif kind == "zeros":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "number":
        width = rng.choice([1, 2, 4, 8])
        at = min(at, max(0, size - width))
        value = rng.choice(EXTREMES) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
    elif kind == "cut":
        del data[at:]
    elif kind == "more":
        data += rng.randbytes(length)
    elif kind == "drop":
        del data[at : at + length]
    elif kind == "twice":
        data[at:at] = data[at : at + length]
    else:
        other = rng.randrange(size)
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    path.write_bytes(bytes(data))
    return Mutation(f"{kind} at {at}")


def damage_values(rng: random.Random, value: Any) -> tuple[Any, str]:
    """A value of JSON with one damage somewhere inside, and what it is."""
    places = list(_places(value))
    parent, key = rng.choice(places)
    name = _name(value, parent, key)
    kind = rng.choice(["wrong", "wrong", "wrong", "number", "drop", "rename", "more", "deep", "copy", "twin"])
    if kind == "number" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = rng.choice([-1, 0, 2, 10, 1000, 10**6, 10**12]) * parent[key] + rng.choice([-1, 0, 1])
    elif kind == "drop":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice(["", "x", str(key) + "_", "_target_", "path", "trust"])] = parent.pop(key)
    elif kind == "more" and isinstance(parent[key], (dict, list)):
        if isinstance(parent[key], dict):
            parent[key][rng.choice(["x", "_target_", "path", "weights", "trust", "dim"])] = rng.choice(WRONG)
        else:
            parent[key].append(rng.choice(WRONG))
    elif kind == "deep":
        for _ in range(rng.choice([3, 50, 250])):
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}])
    elif kind == "copy":
        other, from_key = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[from_key]))
    elif kind == "twin" and isinstance(parent[key], list):
        parent[key] *= rng.choice([2, 1000])
    else:
        kind, parent[key] = "wrong", rng.choice(WRONG)
    return value, f"{kind} {name}" + (f" = {str(parent[key])[:60]!r}" if kind in ("wrong", "number", "copy") else "")


def damage_json(rng: random.Random, path: Path, finish: Callable[[Any], Any] = lambda document: document, legal: bool = False) -> Mutation:
    """One to three damages of a JSON file's values. finish: what makes a document of another content whole again (its checksum)."""
    document, words = json.loads(path.read_text()), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if isinstance(document, (dict, list)) and document:
            document, what = damage_values(rng, document)
            words.append(what)
    path.write_text(json.dumps(finish(document)))
    return Mutation(", ".join(words), legal)


def deep_json(rng: random.Random, path: Path) -> Mutation:
    """What no value can say: nesting without end, numbers of many digits, text that is no UTF-8, a key twice."""
    text, kind = path.read_text(), rng.choice(["nested", "digits", "bytes", "twice", "spaces"])
    if kind == "nested":
        path.write_text(text.replace("{", "{" + '"x": ' + "[" * 100_000 + "]" * 100_000 + ", ", 1))
    elif kind == "digits":
        path.write_text(text.replace(": ", ": " + "9" * rng.choice([20, 400, 5000]), 1))
    elif kind == "bytes":
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] = 0xFF
        path.write_bytes(bytes(data))
    elif kind == "twice":
        path.write_text(text.replace("{", '{"format": 99, ', 1))
    else:
        path.write_text(text.replace(",", " ,\n\t "))
    return Mutation(kind)


def _places(value: Any) -> Any:
    """(container, key) of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _name(root: Any, parent: Any, key: Any) -> str:
    """The path of a place, for people."""
    if parent is root:
        return str(key)
    for at, name in _places(root):
        if at[name] is parent:
            return f"{_name(root, at, name)}.{key}"
    return str(key)
