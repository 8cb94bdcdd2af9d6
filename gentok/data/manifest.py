"""Manifest: images that a table lists, one row each: where the file is, and, where wanted, its class and its caption.

MANIFEST.csv or .tsv has a first line with the names of its columns; every line of MANIFEST.jsonl is a JSON object. Paths are relative to
the manifest's folder, or absolute. What becomes of files that cannot be read, or are not there: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gentok.data.file_index import FileIndex, FileSource, MediaType
from gentok.data.image_dataset import ImageData, ImageOptions
from gentok.data.names import first_few
from gentok.data.source_options import CaptionOptions, Found
from gentok.interfaces import LocalPath

__all__ = ["Manifest", "ManifestOptions"]

_KINDS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class ManifestOptions(CaptionOptions):
    """Options of manifests; `held_out` may name a second one.

    Attributes:
        path_column: the column of the files.
        label_column: the column of the labels.
        caption_column: the column of the captions.
    """

    path_column: str = "path"
    label_column: str = "label"
    caption_column: str = "caption"

    def find(self, path: str | os.PathLike[str], media_type: MediaType) -> Found:
        """Lists the manifest `path`, and the second one where `held_out` names one.

        Raises:
            FileNotFoundError: a manifest is missing.
            ValueError: it cannot be read, or lacks a column.
        """
        columns = {"path": self.path_column, "label": self.label_column, "caption": self.caption_column}
        captions = self.captions is not None
        return self.pair(path, lambda place, classes: _list(Path(place).expanduser(), columns, classes, captions, media_type))


class Manifest(ImageData, id="data/manifest"):
    """The images that a table lists.

    Args:
        path: the table.
        options: the fields of ManifestOptions and ImageOptions.

    Raises:
        FileNotFoundError, ValueError: a one-line error that says what to change.
    """

    kind = "manifest"

    def __init__(self, path: LocalPath | os.PathLike[str], **options: Annotated[Any, ManifestOptions, ImageOptions]):
        super().__init__(path, ManifestOptions, options)


def _list(path: Path, columns: dict[str, str], classes: bool | Sequence[str] | None, captions: bool, media_type: MediaType) -> FileIndex:
    rows, there = _read(path, media_type)
    if not rows:
        raise ValueError(f"{path} lists no {media_type.many}: a row for each is expected, with the column {columns['path']!r}")
    labelled = classes is not False and (classes is not None or columns["label"] in there)
    for what, wanted in (("path", True), ("label", labelled), ("caption", captions)):
        if wanted and columns[what] not in there:
            raise ValueError(f"{path} has no column {columns[what]!r}; it has: {', '.join(there)} (data.{what}_column=NAME names another)")
    names = [_text(row, columns["path"]) for row in rows]
    if not all(names):
        raise ValueError(f"row {names.index('') + 1} of {path} has no {columns['path']!r}: fill it in, or remove the row")
    files = [path.parent / Path(name).expanduser() for name in names]
    foreign = [name for name in names if not name.lower().endswith(media_type.suffixes)]
    if len(foreign) == len(names):
        raise ValueError(
            f"{path} lists no {media_type.many}: {columns['path']!r} has {first_few(foreign)}; files ending in {first_few(media_type.suffixes)} are read"
        )
    return FileIndex(
        str(path),
        media_type,
        names,
        FileSource(files),
        [_stamp(file) for file in files],
        [_text(row, columns["label"]) or None for row in rows] if labelled else None,
        [_text(row, columns["caption"]) for row in rows] if captions else None,
    )


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _stamp(file: Path) -> list[int]:
    try:
        stat = file.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _read(path: Path, media_type: MediaType) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows and the names of the columns."""
    if path.suffix.lower() not in _KINDS:
        raise ValueError(
            f"{path} is no manifest: a table ending in {', '.join(_KINDS)} is expected (data=folder and data=sound_folder read folders)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path}; give the table that lists your {media_type.many}: data.path=FILE")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                rows = [_object(line, number, path) for number, line in enumerate(file, 1) if line.strip()]
                return rows, list(dict.fromkeys(key for row in rows for key in row))
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", skipinitialspace=True)
            return list(reader), [str(name) for name in reader.fieldnames or ()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not written in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _object(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} of {path} is no JSON object; one with the columns as keys is expected")
    return row
