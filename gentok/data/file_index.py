"""What was found in a folder, a table or shards, before anything is decoded: which items, what of them is broken, and which are held
out.

Images and sounds share this; a `MediaType` says what differs. Only headers are read here. More than a share `max_broken` of broken items
stops the run; a single one does so only where that is 0.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gentok.data.names import first_few
from gentok.data.progress import progress

__all__ = ["DataError", "MediaType", "Source", "FileSource", "FileIndex", "split", "stop_if_too_many"]

_MANY = 5000
"""From this many items on, reading headers shows a bar."""
_log = logging.getLogger("gentok.data")


class DataError(ValueError):
    """Too many items are broken. A loader's worker hands its errors on with the whole traceback as their message; here the last line
    of it, which is the message itself, is kept."""

    def __init__(self, message: str):
        super().__init__(str(message).strip().splitlines()[-1].removeprefix(f"{__name__}.DataError: "))


@dataclass(frozen=True)
class MediaType:
    """A kind of media.

    Attributes:
        one, many: its name in messages.
        suffixes: of the files that are read.
        header: (path or bytes, name) -> an item's sizes from its header, a tuple of whole numbers. Raises ValueError or OSError.
        head: bytes in which the header of most files lies; None: only the whole file says how long it is.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]
    header: Callable[[Any, str], tuple[int, ...]]
    head: int | None = None


class Source(Protocol):
    """Where items lie; sent to the loader's workers."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What messages call item i."""

    def open(self, i: int) -> str | bytes:
        """The path or the bytes of item i. Raises OSError."""

    def select(self, rows: Sequence[int]) -> Source:
        """A source of some of the items."""


class FileSource:
    """Items that are files."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.paths = [os.fspath(p) for p in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def open(self, i: int) -> str:
        return self.paths[i]

    def select(self, rows: Sequence[int]) -> FileSource:
        return FileSource([self.paths[i] for i in rows])


@dataclass
class FileIndex:
    """What was found at one place. The lists have one entry per item.

    Attributes:
        where: the place, for messages.
        media_type: what the items are.
        names: stable within the place; the split goes by them.
        source: gives the items.
        stamps: what changes when an item's content does.
        labels: class names, None for an item without one; None instead of a list: there are no classes.
        captions: texts; None: they are not read.
        sizes: what the header of each item says, None where it cannot be read; None instead of a list: not known yet.
        lost: what cannot be read beside the items listed.
        lost_count: how many these are.
    """

    where: str
    media_type: MediaType
    names: list[str]
    source: Any
    stamps: list[Any]
    labels: list[str | None] | None = None
    captions: list[str] | None = None
    sizes: list[tuple[int, ...] | None] | None = None
    lost: list[str] = field(default_factory=list)
    lost_count: int = 0

    def select(self, rows: Sequence[int]) -> FileIndex:
        def pick(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in rows]

        return FileIndex(
            self.where, self.media_type, pick(self.names) or [], self.source.select(rows), pick(self.stamps) or [], pick(self.labels),
            pick(self.captions), pick(self.sizes),
        )  # fmt: skip

    def without_broken(self, max_broken: float) -> FileIndex:
        """The items whose header can be read and whose label is there; the others are logged.

        Args:
            max_broken: largest share of the others.

        Raises:
            DataError: there are more.
        """
        if self.sizes is None:
            self.sizes = _sizes(self.source, self.media_type)
        good = [i for i, size in enumerate(self.sizes) if size is not None and (self.labels is None or self.labels[i] is not None)]
        kept = set(good)
        lost = [self.source.name(i) for i in range(len(self.names)) if i not in kept] + self.lost
        count = len(self.names) - len(good) + self.lost_count
        total = len(self.names) + self.lost_count
        if count:
            stop_if_too_many(lost, count, total, max_broken, self.media_type.many)
            _log.warning(
                "%d of %d %s in %s cannot be read and are skipped: %s", count, total, self.media_type.many, self.where, first_few(lost)
            )
        out = self.select(good)
        out.lost, out.lost_count = lost, count
        return out


def split(index: FileIndex, held_out: FileIndex | float, max_broken: float, seed: int) -> dict[str, FileIndex]:
    """Splits what can be read of an index.

    Of each class the same share is held out, by a hash of name and seed: a file that breaks, or is new, leaves the others where they are.

    Args:
        index: of all items.
        held_out: the share of `index` that is held out, or other items that are.
        max_broken: largest share of broken items.
        seed: of the hash.

    Returns:
        {"train": index, "held_out": index}.

    Raises:
        ValueError: a share out of its range, or nothing is left for a split.
        DataError: too many items are broken.
    """
    if not isinstance(held_out, FileIndex) and not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out}: a share between 0 and 1, or what to hold out instead")
    if not 0 <= max_broken <= 1:
        raise ValueError(f"data.max_broken={max_broken}: a share between 0 and 1")
    found = len(index.names)
    if isinstance(held_out, FileIndex):
        parts = {"train": index.without_broken(max_broken), "held_out": held_out.without_broken(max_broken)}
    else:
        # of all that are listed: a file that breaks leaves the others where they are
        kept = {index.names[i] for i in _held_out(index.names, index.labels, held_out, seed)}
        index = index.without_broken(max_broken)
        rows: dict[str, list[int]] = {"train": [], "held_out": []}
        for i, name in enumerate(index.names):
            rows["held_out" if name in kept else "train"].append(i)
        parts = {name: index.select(chosen) for name, chosen in rows.items()}
        parts["train"].lost, parts["train"].lost_count = index.lost, index.lost_count
    for name, part in parts.items():
        if not part.names:
            raise ValueError(
                f"no {part.media_type.one} is left for {name} ({part.where} has {found}): add some, or name others to hold out with "
                "data.held_out"
            )
    return parts


def _held_out(names: Sequence[str], labels: Sequence[str | None] | None, share: float, seed: int) -> list[int]:
    """The rows that are held out: of each class the share whose hashes of name and seed are the smallest."""

    def order(i: int) -> str:
        return hashlib.sha256(f"{seed}/{names[i]}".encode()).hexdigest()

    groups: dict[str | None, list[int]] = {}
    for i in range(len(names)):
        groups.setdefault(labels[i] if labels else None, []).append(i)
    kept: list[int] = []
    for rows in groups.values():
        kept += sorted(rows, key=order)[: min(len(rows) - 1, max(1, round(share * len(rows))))]
    return kept


def _sizes(source: Source, media_type: MediaType) -> list[tuple[int, ...] | None]:
    out: list[tuple[int, ...] | None] = []
    with progress("reading headers", len(source), media_type.many, len(source) >= _MANY) as advance:
        for i in range(len(source)):
            try:
                out.append(media_type.header(source.open(i), source.name(i)))
            except (ValueError, OSError):
                out.append(None)
            advance(1)
    return out


def stop_if_too_many(broken: Sequence[str], count: int, total: int, max_broken: float, many: str) -> None:
    """Raises DataError where `count` broken items of `total` are all, or more than the share `max_broken` (and more than one)."""
    if count >= total:
        raise DataError(f"none of the {total} {many} can be read: {first_few(broken)}")
    if count > (max(max_broken * total, 1.0) if max_broken else 0.0):
        raise DataError(
            f"{count} of {total} {many} cannot be read, more than the share data.max_broken={max_broken:g} allows: {first_few(broken)}"
        )
