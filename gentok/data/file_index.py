"""What was found in a folder, a table or shards, before anything is decoded: which items, what of them is broken, and which are held
out.

Images and sounds share this; a `MediaType` says what differs. Only headers are read here. More than a share `max_broken` of broken items
stops the run; a single one does so only where that is 0.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from stat import S_ISDIR
from typing import Any, Protocol

from gentok.data.names import Unused, printable, with_reasons
from gentok.data.overlap import say_duplicates, without_held_out
from gentok.data.progress import progress

__all__ = ["DataError", "MediaType", "Source", "FileSource", "FileIndex", "place_of", "reason_of", "split", "stop_if_too_many"]

_PATIENCE = 2.0
"""Seconds after which reading headers shows a bar."""
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
        header: (path, bytes or binary file, name) -> an item's sizes, a tuple of whole numbers. Raises ValueError or OSError.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]
    header: Callable[[Any, str], tuple[int, ...]]

    def size(self, source: Any, name: str) -> tuple[int, ...] | str:
        """What `header` says, or why it cannot be read."""
        try:
            return self.header(source, name)
        except (ValueError, OSError) as error:
            return reason_of(error, name)


class Source(Protocol):
    """Where items lie; sent to the loader's workers.

    Attributes:
        local: whether they lie on this machine, so that a look at many of them is cheap.
    """

    local: bool

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What messages call item i."""

    def open(self, i: int) -> str | bytes:
        """The path or the bytes of item i. Raises OSError."""

    def ahead(self, rows: Sequence[int]) -> None:
        """Told before these items are opened, one after the other: a source that has to wait for each may fetch them together."""

    def length(self, i: int) -> int:
        """Bytes of item i. Raises OSError."""

    def piece(self, i: int, start: int, count: int) -> bytes:
        """Some bytes of item i. Raises OSError."""

    def select(self, rows: Sequence[int]) -> Source:
        """A source of some of the items."""


def place_of(path: str | os.PathLike[str], stat: os.stat_result) -> tuple[Any, ...]:
    """What is equal for two names of one file or folder. The size and time are for file systems that count their files badly."""
    place = (stat.st_dev, stat.st_ino) if stat.st_ino else (os.path.realpath(path),)
    return place if S_ISDIR(stat.st_mode) else (*place, stat.st_size, stat.st_mtime_ns)


class FileSource:
    """Items that are files."""

    local = True

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.paths = [os.fspath(p) for p in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return printable(self.paths[i])

    def open(self, i: int) -> str:
        return self.paths[i]

    def ahead(self, rows: Sequence[int]) -> None:
        pass

    def length(self, i: int) -> int:
        return os.stat(self.paths[i]).st_size

    def piece(self, i: int, start: int, count: int) -> bytes:
        with open(self.paths[i], "rb") as file:
            file.seek(start)
            return file.read(count)

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
        sizes: what the header of each item says, or why it cannot be read; None instead of a list: not known yet.
        places: what is equal for items that are one and the same file, or the same bytes of one.
        broken: {name: reason} of what cannot be read beside the items listed.
        broken_count: how many these are.
        left_out: what else lies there and is not used.
    """

    where: str
    media_type: MediaType
    names: list[str]
    source: Any
    stamps: list[Any]
    labels: list[str | None] | None = None
    captions: list[str] | None = None
    sizes: list[tuple[int, ...] | str] | None = None
    places: list[Any] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    broken_count: int = 0
    left_out: Unused = field(default_factory=Unused)

    def select(self, rows: Sequence[int]) -> FileIndex:
        """An index of some of the items, beside which nothing is broken or left out."""
        lists: dict[str, Any] = {}
        for name in ("names", "stamps", "labels", "captions", "sizes", "places"):
            values = getattr(self, name)
            lists[name] = [values[i] for i in rows] if values else values
        return replace(self, source=self.source.select(rows), broken={}, broken_count=0, left_out=Unused(), **lists)

    @property
    def known_sizes(self) -> list[tuple[int, ...]]:
        """The sizes of the items whose header can be read."""
        return [size for size in self.sizes or () if not isinstance(size, str)]

    def without_broken(self, max_broken: float) -> FileIndex:
        """The items whose header can be read and whose label is there; the others are logged, and what is left out.

        Args:
            max_broken: largest share of the others.

        Raises:
            DataError: there are more.
        """
        if self.sizes is None:
            self.sizes = _sizes(self.source, self.media_type)
        reasons = {i: size for i, size in enumerate(self.sizes) if isinstance(size, str)}
        for i, label in enumerate(self.labels or ()):
            if label is None:
                reasons.setdefault(i, "it has no label")
        broken = {self.source.name(i): reason for i, reason in sorted(reasons.items())} | self.broken
        count, total = len(reasons) + self.broken_count, len(self.names) + self.broken_count
        if count:
            stop_if_too_many(broken, count, total, max_broken, self.media_type.many)
            many = self.media_type.many
            _log.warning("%d of %d %s in %s cannot be read and are skipped: %s", count, total, many, self.where, with_reasons(broken))
        if self.left_out.count:
            _log.warning("not used of what lies in %s: %s", self.where, self.left_out)
        out = self.select([i for i in range(len(self.names)) if i not in reasons])
        out.broken, out.broken_count, out.left_out = broken, count, self.left_out
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
        train = without_held_out(index, held_out).without_broken(max_broken)
        parts = {"train": train, "held_out": held_out.without_broken(max_broken)}
    else:
        # of all that are listed: a file that breaks leaves the others where they are
        kept = {index.names[i] for i in _held_out(index.names, index.labels, held_out, seed)}
        index = index.without_broken(max_broken)
        rows: dict[str, list[int]] = {"train": [], "held_out": []}
        for i, name in enumerate(index.names):
            rows["held_out" if name in kept else "train"].append(i)
        parts = {name: index.select(chosen) for name, chosen in rows.items()}
        train = parts["train"]
        train.broken, train.broken_count, train.left_out = index.broken, index.broken_count, index.left_out
    for name, part in parts.items():
        if not part.names:
            raise ValueError(
                f"no {part.media_type.one} is left for {name} ({part.where} has {found}): add some, or name others to hold out with "
                "data.held_out"
            )
    say_duplicates(parts["train"], parts["held_out"])
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


def _sizes(source: Source, media_type: MediaType) -> list[tuple[int, ...] | str]:
    out: list[tuple[int, ...] | str] = []
    began, shown = time.monotonic(), 0
    with progress("reading headers", len(source), media_type.many, lazy=True) as advance:
        for i in range(len(source)):
            try:
                out.append(media_type.size(source.open(i), source.name(i)))
            except (ValueError, OSError) as error:
                out.append(reason_of(error, source.name(i)))
            if time.monotonic() - began > _PATIENCE:
                advance(len(out) - shown)
                shown = len(out)
    return out


def reason_of(error: Exception, name: str) -> str:
    """Why an item cannot be read, in one line, without its name."""
    reason = getattr(error, "strerror", None) or str(error)
    reason = re.sub(r"^ cannot be read as an? \w+: ", "", " ".join(str(reason).removeprefix(name).split(" ")))
    return " ".join(reason.split()) or type(error).__name__


def stop_if_too_many(broken: Mapping[str, str], count: int, total: int, max_broken: float, many: str) -> None:
    """Raises DataError where `count` broken items of `total` are all, or more than the share `max_broken` (and more than one).

    Args:
        broken: {name: reason}.
        count, total: of items.
        max_broken: the largest share.
        many: what the items are.
    """
    if count >= total:
        raise DataError(f"none of the {total} {many} can be read: {with_reasons(broken)}")
    if count > (max(max_broken * total, 1.0) if max_broken else 0.0):
        raise DataError(
            f"{count} of {total} {many} cannot be read, more than the share data.max_broken={max_broken:g} allows: {with_reasons(broken)}"
        )
