"""Manifest: images that a table lists, one row each: where the file is, and, where wanted, its class and its caption.

The forms of tables are those of gentok.data.table. Paths are relative to the manifest's folder, or absolute. What becomes of files that
cannot be read, or are not there: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gentok.data.file_index import FileIndex, FileSource, MediaType, place_of
from gentok.data.image_dataset import ImageData, ImageOptions
from gentok.data.names import SPLITS, encodable, first_few, printable
from gentok.data.source_options import CaptionOptions, Found, refuse_address
from gentok.data.table import read_table
from gentok.interfaces import LocalPath

__all__ = ["Manifest", "ManifestOptions"]

_log = logging.getLogger("gentok.data")


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

        def rows(place: Any, classes: bool | Sequence[str] | None) -> FileIndex:
            refuse_address(place, media_type)
            return _list(Path(os.path.expanduser(place)), columns, classes, captions, media_type)

        return self.pair(path, rows)


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
    rows, there, broken = read_table(path, media_type)
    if not rows and not broken:
        raise ValueError(f"{path} lists no {media_type.many}: a row for each is expected, with the column {columns['path']!r}")
    labelled = classes is not False and (classes is not None or columns["label"] in there)
    used = [what for what, wanted in (("path", True), ("label", labelled), ("caption", captions)) if wanted]
    for what in used if rows else ():
        if columns[what] not in there:
            raise ValueError(f"{path} has no column {columns[what]!r}; it has: {', '.join(there)} (data.{what}_column=NAME names another)")
    _say_splits(path, rows, [name for name in there if name not in columns.values()])
    read: dict[str, list[str]] = {what: [] for what in ("path", "label", "caption")}
    for where, row in rows.items():
        try:
            values = [_text(row, columns[what]) if what in used else "" for what in read]
            if not values[0]:
                raise ValueError(f"it has no {columns['path']!r}")
            if "\0" in values[0]:
                raise ValueError(f"its {columns['path']!r} has a character of value 0")
        except ValueError as error:
            broken[where] = str(error)
        else:
            for what, value in zip(read, values):
                read[what].append(value)
    names = read["path"]
    foreign = [name for name in names if not name.lower().endswith(media_type.suffixes)]
    if names and len(foreign) == len(names):
        suffixes = first_few(media_type.suffixes)
        raise ValueError(
            f"{path} lists no {media_type.many}: {columns['path']!r} has {first_few(foreign)}; files ending in {suffixes} are read"
        )
    files = [path.parent / os.path.expanduser(name) for name in names]
    stats = [_stat(file) for file in files]
    return FileIndex(
        printable(str(path)),
        media_type,
        [printable(name) for name in names],
        FileSource(files),
        [[stat.st_size, stat.st_mtime_ns] if stat else [] for stat in stats],
        [encodable(label) or None for label in read["label"]] if labelled else None,
        [encodable(caption) for caption in read["caption"]] if captions else None,
        places=[place_of(file, stat) if stat else str(file) for stat, file in zip(stats, files)],
        broken=broken,
        broken_count=len(broken),
    )


def _say_splits(path: Path, rows: dict[str, dict[str, Any]], columns: list[str]) -> None:
    """Logs which of the columns, none of which is used, seems to say what is held out."""
    for name in columns:
        values = Counter(str(row.get(name)).strip() for row in rows.values())
        if len(values) > 1 and all(value.lower() in SPLITS for value in values):
            shown = first_few([f"{value} ({count})" for value, count in values.items()])
            _log.warning("%s: the column %r looks like splits, and is not used: %s; data.held_out takes a second table", path, name, shown)


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, (dict, list)):
        raise ValueError(f"its {column!r} is a {type(value).__name__}; a text or a number is expected")
    return "" if value is None or value != value else str(value).strip()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (OSError, ValueError):
        return None
