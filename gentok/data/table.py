"""Tables of items: .csv and .tsv with a first line that names the columns, .jsonl with a JSON object per line.

A row that is none is told apart from the others, so that one quote that is not closed costs one row and no more.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentok.data.file_index import MediaType
from gentok.data.names import printable

__all__ = ["read_table"]

_KINDS = (".csv", ".tsv", ".jsonl")


def read_table(path: Path, media_type: MediaType) -> tuple[dict[str, dict[str, Any]], list[str], dict[str, str]]:
    """Reads a table.

    Args:
        path: of the table.
        media_type: what its rows are.

    Returns:
        {what messages call the row: {column: value}}, the names of the columns, and {row: why it is none}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table.
    """
    kind, shown = path.suffix.lower(), printable(str(path))
    if kind not in _KINDS:
        raise ValueError(
            f"{shown} is no manifest: a table ending in {', '.join(_KINDS)} is expected (data=folder and data=sound_folder read folders)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {shown}; give the table that lists your {media_type.many}: data.path=FILE")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown} is not written in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    rows: dict[str, dict[str, Any]] = {}
    broken: dict[str, str] = {}
    found = _objects(lines) if kind == ".jsonl" else _records(lines, "\t" if kind == ".tsv" else ",", media_type, shown)
    columns: dict[str, None] = {}
    for number, row in found:
        if isinstance(row, str):
            broken[f"line {number} of {shown}"] = row
        elif number == 0:
            columns = dict.fromkeys(row)
        else:
            rows[f"line {number} of {shown}"] = row
            columns |= dict.fromkeys(row)
    return rows, list(columns), broken


def _objects(lines: list[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, its object or why it is none)."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"it is no JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else "it is no JSON object; one with the columns as keys is expected"


def _records(lines: list[str], comma: str, media_type: MediaType, shown: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(the line where it begins, its row or why it is none); first (0, the names of the columns)."""
    columns: list[str] | None = None
    start = 0
    while start < len(lines):
        first = start
        reader = csv.reader((lines[i] for i in range(first, len(lines))), delimiter=comma, skipinitialspace=True, strict=True)
        try:
            for fields in reader:
                number, start = start + 1, first + reader.line_num
                if columns is None:
                    columns = [name.strip() for name in fields]
                    while columns and not columns[-1]:
                        columns.pop()  # of a spreadsheet whose last columns are empty
                    if len(set(columns)) < len(columns):
                        raise ValueError(f"{shown} names a column twice: {', '.join(columns)}")
                    yield 0, dict.fromkeys(columns)
                elif not any(field.strip() for field in fields):
                    continue
                elif _swallowed(fields, comma, len(columns), media_type):
                    start = number  # this line alone is lost
                    yield number, "a quote opens in it that is closed in a later row"
                    break
                elif len(fields) < len(columns) or any(field.strip() for field in fields[len(columns) :]):
                    reason = f"it has {len(fields)} fields, the first line {len(columns)}"
                    yield number, reason + (": a text with commas must stand in quotes" if len(fields) > len(columns) else "")
                else:
                    yield number, dict(zip(columns, fields))
        except csv.Error as error:
            if columns is None:
                raise ValueError(f"the first line of {shown} cannot be read as names of columns: {error}") from error
            start += 1
            yield start, f"its quotes do not pair ({error}): a text with quotes must stand in quotes, and those inside are doubled"


def _swallowed(fields: list[str], comma: str, columns: int, media_type: MediaType) -> bool:
    """Whether a field of several lines has a whole row in it: its quote was not meant to open anything."""
    inside = [line for field in fields if "\n" in field for line in field.splitlines()[1:]]
    return any(line.count(comma) == columns - 1 and any(s in line.lower() for s in media_type.suffixes) for line in inside)
