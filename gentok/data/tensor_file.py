"""Named arrays with a header in one file, in the safetensors format: written whole or not at all, piece by piece, and read through a map.

safetensors' own writer wants every tensor in memory; this one takes iterables of pieces, which may lie in other files, so that a file of
any size is put together in flat memory. Layout: 8 bytes, the length of a JSON table {name: {dtype, shape, data_offsets}, __metadata__:
{"gentok": header, "checksum": CRC-32 of the rest of the table and of the data}}, then the data. Files of before have no checksum.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gentok.atomic import whole_file
from gentok.errors import FormatError
from gentok.types.documents import LIMIT, parse
from gentok.types.formats import fitted

__all__ = ["FileLayout", "StoredArray", "write_arrays", "read_layout", "TYPES"]

TYPES = {"U8": "uint8", "U16": "uint16", "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32", "BOOL": "bool"}
"""safetensors' names of the numpy types that are stored."""
_CODES = {name: code for code, name in TYPES.items()}
_Count = Annotated[int, Field(ge=0, le=2**48)]
_ENTRY = {"dtype": Literal["U8", "U16", "I32", "I64", "F16", "F32", "BOOL"], "shape": list[_Count], "data_offsets": tuple[_Count, _Count]}


_BLOCK = 1 << 20
"""Bytes that are read at once where all of a file is."""


@dataclass(frozen=True)
class StoredArray:
    """An array that lies in a file: a piece for `write_arrays`, which copies it block by block.

    Attributes:
        path: of the file.
        start: the byte where it begins.
        dtype: numpy's.
        shape: of it.
    """

    path: Path
    start: int
    dtype: Any
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Iterator[bytes]:
        """Its bytes. Raises OSError where the file ends too early."""
        left = math.prod(self.shape) * self.dtype.itemsize
        with open(self.path, "rb") as file:
            file.seek(self.start)
            while left:
                data = file.read(min(left, _BLOCK))
                if not data:
                    raise OSError(f"{self.path} has become shorter while it was read")
                left -= len(data)
                yield data


class FileLayout:
    """What a file holds: `header` (gentok's own), `table` {name: {dtype, shape, data_offsets}}, where the data begin, and whether a
    checksum stands for all of it."""

    def __init__(self, path: Path, header: dict[str, Any], table: dict[str, Any], start: int, checked: bool):
        self.path, self.header, self.table, self.start, self.checked = path, header, table, start, checked

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of an array; None where the file does not hold it."""
        return tuple(self.table[name]["shape"]) if name in self.table else None

    def stored(self) -> dict[str, StoredArray]:
        """name -> the array where it lies."""
        import numpy as np

        return {
            name: StoredArray(self.path, self.start + entry["data_offsets"][0], np.dtype(TYPES[entry["dtype"]]), tuple(entry["shape"]))
            for name, entry in self.table.items()
        }

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
    """arrays: name -> numpy or stored arrays of one type, to be joined along their first axis. Raises OSError with a line where that
    fails."""
    table: dict[str, Any] = {"__metadata__": {"gentok": json.dumps(header)}}
    offset = 0
    # the widest types first, so that each array lies at a multiple of its item's size
    arrays = dict(sorted(arrays.items(), key=lambda pair: (-pair[1][0].dtype.itemsize, pair[0])))
    for name, pieces in arrays.items():
        shape = [sum(len(p) for p in pieces), *pieces[0].shape[1:]]
        size = math.prod(shape) * pieces[0].dtype.itemsize
        table[name] = {"dtype": _CODES[pieces[0].dtype.name], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    table["__metadata__"]["checksum"] = _checksum(table, (data for pieces in arrays.values() for data in _bytes(pieces)))
    raw = json.dumps(table).encode()
    raw += b" " * (-len(raw) % 8)  # safetensors wants its data aligned
    with whole_file(path, "paths.cache") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for pieces in arrays.values():
            for data in _bytes(pieces):
                file.write(data)
    return Path(path)


def _bytes(pieces: Iterable[Any]) -> Iterable[Any]:
    import numpy as np

    for piece in pieces:
        if isinstance(piece, StoredArray):
            yield from piece.blocks()
            continue
        yield np.ascontiguousarray(piece).reshape(-1).view("uint8").data


def _checksum(table: Mapping[str, Any], data: Iterable[Any]) -> str:
    """CRC-32, in hex: of terabytes it is three times as fast to compute as what withstands an attacker, who can write it anyway."""
    about = {key: value for key, value in table["__metadata__"].items() if key != "checksum"}
    found = zlib.crc32(json.dumps({**table, "__metadata__": about}).encode())
    for block in data:
        found = zlib.crc32(block, found)
    return f"{found:08x}"


def read_layout(path: str | os.PathLike[str], kind: str, newest: int, what: str) -> FileLayout:
    """The layout of a file whose header says `kind` and a format up to `newest`; `what` it is, for the messages.

    Raises FileNotFoundError, or FormatError with a line on a foreign, cut, damaged or newer file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}")
    size = path.stat().st_size
    advice = "delete it, and it is made anew"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            table = parse(file.read(length) if 2 <= length < min(size, LIMIT) else b"", str(path))
            about = dict(table["__metadata__"])
            header = parse(about["gentok"].encode(), str(path))
            fitted(header, {"format": int, "kind": str}, str(path))
            if header.get("format", 0) > newest:
                raise _Newer(f"{path} has the format {header['format']} of a {what}, this gentok reads up to {newest}; upgrade gentok")
            entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
            expected = 8 + length + _whole(entries, str(path))
        except _Newer:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is no {what} of gentok; {advice}") from error
        if header.get("kind") != kind:
            raise FormatError(f"{path} is no {what} of gentok; {advice}")
        if size != expected:
            raise FormatError(f"{path} is cut short or damaged: {expected:,} bytes expected, {size:,} there; {advice}")
        checked = "checksum" in about
        if checked and about["checksum"] != _checksum(table, iter(lambda: file.read(_BLOCK), b"")):
            raise FormatError(f"{path} is damaged: its checksum differs; {advice}")
    return FileLayout(path, header, entries, 8 + length, checked)


class _Newer(FormatError):
    """Of a newer format."""


def _whole(entries: Mapping[str, Any], what: str) -> int:
    """Bytes of all arrays, which lie one behind the other. Raises FormatError where the table does not say so."""
    import numpy as np

    end = 0
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1]["data_offsets"], pair[0])):
        if set(entry) != set(_ENTRY):
            raise FormatError(f"{what}: the entry {name!r} is damaged")
        start, stop = fitted(entry, _ENTRY, f"{what}: {name}")["data_offsets"]
        if start != end or stop - start != math.prod(entry["shape"]) * np.dtype(TYPES[entry["dtype"]]).itemsize:
            raise FormatError(f"{what}: the entry {name!r} does not lie where it should")
        end = stop
    return end
