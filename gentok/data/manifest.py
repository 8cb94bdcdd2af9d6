"""Manifest: pictures that a table lists, one row each: where the file is, and, where wanted, its class and its caption.

MANIFEST.csv or .tsv has a first line with the names of its columns; every line of MANIFEST.jsonl is a JSON object. Paths are relative to
the manifest's folder, or absolute. What becomes of files that cannot be read, or are not there: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentok.data.file_index import Files, Listing, Medium, some
from gentok.data.image_dataset import PICTURES, ImageData
from gentok.interfaces import LocalPath

__all__ = ["Manifest", "list_manifests", "class_list"]

_KINDS = (".csv", ".tsv", ".jsonl")


class Manifest(ImageData, id="data/manifest"):
    """media_shape (channels, H, W); train and held_out over the rows of the manifest `path`.

    path_column, label_column, caption_column: the names of the columns. size, channels, resize, max_broken, split_seed, in_memory: as of
    ImageFolder. held_out: the share of the rows that is held out (of each class; chosen by path), or a second manifest.
    classes: null: the labels are classes where there is a label column; true demands one, false ignores it; a list names the classes in
    the order of their ids, and labels are then names of it or ids. A row with an empty label counts as broken.
    captions: null, or "ids": each row's caption as the condition `text`, by characters; an empty one is no condition.
    caption_length: characters, longer captions are cut. Raises FileNotFoundError or ValueError with a line.
    """

    def __init__(
        self,
        path: LocalPath | os.PathLike[str],
        path_column: str = "path",
        label_column: str = "label",
        caption_column: str = "caption",
        size: int | Sequence[int] | None = None,
        channels: int = 3,
        resize: str = "crop",
        held_out: float | LocalPath = 0.05,
        classes: bool | Sequence[str] | None = None,
        captions: str | None = None,
        caption_length: int = 128,
        max_broken: float = 0.01,
        split_seed: int = 0,
        in_memory: bool = False,
    ):
        columns = {"path": path_column, "label": label_column, "caption": caption_column}
        listing, held_out = list_manifests(path, held_out, columns, classes, captions, PICTURES)
        super().__init__(
            "manifest", listing, held_out, size=size, channels=channels, resize=resize, max_broken=max_broken, split_seed=split_seed,
            classes=class_list(classes),
            captions=captions is not None, caption_length=caption_length, in_memory=in_memory,
        )  # fmt: skip


def class_list(classes: bool | Sequence[str] | None) -> list[str] | None:
    """The names of the classes, where `classes` says them."""
    return None if classes is None or isinstance(classes, bool) else [str(name) for name in classes]


def list_manifests(
    path: str | os.PathLike[str],
    held_out: float | str | os.PathLike[str],
    columns: dict[str, str],
    classes: bool | Sequence[str] | None,
    captions: str | None,
    medium: Medium,
) -> tuple[Listing, Listing | float]:
    """The manifest `path`, and the second one where `held_out` names one. columns: the names of "path", "label" and "caption".

    Raises FileNotFoundError or ValueError with a line.
    """
    if captions not in (None, "ids"):
        raise ValueError(f"data.captions={captions!r}: null, or 'ids' (the characters of each caption as the condition `text`)")
    listing = _list(Path(path).expanduser(), columns, classes, captions is not None, medium)
    if isinstance(held_out, (str, os.PathLike)):
        wanted = False if listing.labels is None else True if classes in (None, True) else classes
        held_out = _list(Path(held_out).expanduser(), columns, wanted, captions is not None, medium)
    return listing, held_out


def _list(path: Path, columns: dict[str, str], classes: bool | Sequence[str] | None, captions: bool, medium: Medium) -> Listing:
    rows, there = _read(path, medium)
    if not rows:
        raise ValueError(f"{path} lists no {medium.many}: a row for each is expected, with the column {columns['path']!r}")
    labelled = classes is not False and (classes is not None or columns["label"] in there)
    for what, wanted in (("path", True), ("label", labelled), ("caption", captions)):
        if wanted and columns[what] not in there:
            raise ValueError(f"{path} has no column {columns[what]!r}; it has: {', '.join(there)} (data.{what}_column=NAME names another)")
    names = [_text(row, columns["path"]) for row in rows]
    if not all(names):
        raise ValueError(f"row {names.index('') + 1} of {path} has no {columns['path']!r}: fill it in, or remove the row")
    files = [path.parent / Path(name).expanduser() for name in names]
    foreign = [name for name in names if not name.lower().endswith(medium.suffixes)]
    if len(foreign) == len(names):
        raise ValueError(
            f"{path} lists no {medium.many}: {columns['path']!r} has {some(foreign)}; files ending in {', '.join(medium.suffixes)} are read"
        )
    return Listing(
        str(path),
        medium,
        names,
        Files(files),
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


def _read(path: Path, medium: Medium) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows and the names of the columns."""
    if path.suffix.lower() not in _KINDS:
        raise ValueError(
            f"{path} is no manifest: a table ending in {', '.join(_KINDS)} is expected (data=folder and data=sound_folder read folders)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path}; give the table that lists your {medium.many}: data.path=FILE")
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
