"""Named arrays with a header in one file, in the safetensors format: written whole or not at all, piece by piece, and read through a map.

safetensors' own writer wants every tensor in memory; this one takes iterables of pieces, so that a large file can be put together from
parts. Layout: 8 bytes, the length of a JSON table {name: {dtype, shape, data_offsets}, __metadata__: {"gentok": header}}, then the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gentok.atomic import whole_file
from gentok.errors import FormatError

__all__ = ["FileLayout", "write_arrays", "read_layout", "TYPES"]

TYPES = {"U8": "uint8", "U16": "uint16", "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32", "BOOL": "bool"}
"""safetensors' names of the numpy types that are stored."""
_CODES = {name: code for code, name in TYPES.items()}
_HEADER_LIMIT = 100_000_000


class FileLayout:
    """What a file holds: `header` (gentok's own), `table` {name: {dtype, shape, data_offsets}}, and where the data begin."""

    def __init__(self, path: Path, header: dict[str, Any], table: dict[str, Any], start: int):
        self.path, self.header, self.table, self.start = path, header, table, start

    def maps(self) -> dict[str, Any]:
        """name -> read-only array, mapped from the file."""
        import numpy as np

        return {
            name: np.memmap(self.path, TYPES[entry["dtype"]], "r", self.start + entry["data_offsets"][0], tuple(entry["shape"]))
            if all(entry["shape"])
            else np.zeros(tuple(entry["shape"]), TYPES[entry["dtype"]])
            for name, entry in self.table.items()
        }


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, list[Any]], header: Mapping[str, Any]) -> Path:
    """arrays: name -> numpy arrays of one type, to be joined along their first axis. Raises OSError with a line where that fails."""
    import math

    table: dict[str, Any] = {"__metadata__": {"gentok": json.dumps(header)}}
    offset = 0
    # the widest types first, so that each array lies at a multiple of its item's size
    arrays = dict(sorted(arrays.items(), key=lambda pair: (-pair[1][0].dtype.itemsize, pair[0])))
    for name, pieces in arrays.items():
        shape = [sum(len(p) for p in pieces), *pieces[0].shape[1:]]
        size = math.prod(shape) * pieces[0].dtype.itemsize
        table[name] = {"dtype": _CODES[pieces[0].dtype.name], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(table).encode()
    raw += b" " * (-len(raw) % 8)  # safetensors wants its data aligned
    with whole_file(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for pieces in arrays.values():
            _write_pieces(file, pieces)
    return Path(path)


def _write_pieces(file: Any, pieces: Iterable[Any]) -> None:
    import numpy as np

    for piece in pieces:
        file.write(np.ascontiguousarray(piece).reshape(-1).view("uint8").data)


def read_layout(path: str | os.PathLike[str], kind: str, newest: int, what: str) -> FileLayout:
    """The layout of a file whose header says `kind` and a format up to `newest`; `what` it is, for the messages.

    Raises FileNotFoundError, or FormatError with a line on a foreign, cut or newer file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}")
    size = path.stat().st_size
    foreign = FormatError(f"{path} is no {what} of gentok; delete it, and it is made anew")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_LIMIT:
            raise foreign
        raw = file.read(length)
    try:
        table = json.loads(raw)
        header = json.loads(table.pop("__metadata__")["gentok"])
        if header.get("format", 0) > newest:
            raise FormatError(f"{path} has the format {header['format']} of a {what}, this gentok reads up to {newest}; upgrade gentok")
        expected = 8 + length + max(entry["data_offsets"][1] for entry in table.values())
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise foreign from error
    if header.get("kind") != kind:
        raise foreign
    if size != expected:
        raise FormatError(f"{path} is cut short or damaged: {expected:,} bytes expected, {size:,} there; delete it, and it is made anew")
    return FileLayout(path, header, table, 8 + length)
