"""Items that would be trained on and held out at once: one file in both places, or two files with the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gentok.data.names import first_few

if TYPE_CHECKING:
    from gentok.data.file_index import FileIndex

__all__ = ["say_duplicates", "without_held_out"]

_PIECE = 4096
"""Bytes from the middle of an item that are compared before the whole is."""
_MOST = 100_000
"""Items that are looked into at most, at every start of a run."""
_log = logging.getLogger("gentok.data")


def without_held_out(index: FileIndex, held_out: FileIndex) -> FileIndex:
    """Training items without those that are also held out: of a folder inside the other, or of a file that two tables or shards name.

    Args:
        index: of the training items.
        held_out: of the others.

    Raises:
        ValueError: nothing is left.
    """
    places = set(held_out.places)
    rows = [i for i in range(len(index.names)) if not index.places or index.places[i] not in places]
    if len(rows) == len(index.names):
        return index
    if not rows:
        raise ValueError(f"all {len(index.names)} {index.media_type.many} of {index.where} are also in {held_out.where}, which is held out")
    same = sorted(set(range(len(index.names))) - set(rows))
    out = index.select(rows)
    out.broken, out.broken_count = index.broken, index.broken_count
    out.left_out.update(index.left_out)
    out.left_out.add(f"held out, by {held_out.where}", *(index.source.name(i) for i in same))
    return out


def say_duplicates(train: FileIndex, held_out: FileIndex) -> None:
    """Logs how many held-out items are, byte for byte, in training too. Items of shards behind urls are not looked at.

    Only items of a length that both splits have are read at all, and only 4 KB of those unless they agree; none where these are many.
    """
    if not (train.source.local and held_out.source.local):
        return
    found = [_keys(part, range(len(part.names)), lambda part, i: part.source.length(i)) for part in (train, held_out)]
    for key in (_middle, _digest):
        common = found[0].keys() & found[1].keys()
        rows = [sorted(i for value in common for i in part[value]) for part in found]
        if sum(map(len, rows)) > _MOST:
            _log.info("%s and %s are too many of the same length to be compared", train.where, held_out.where)
            return
        found = [_keys(part, some, key) for part, some in zip((train, held_out), rows)]
    same = {i: rows[0] for value, rows in found[0].items() for i in found[1].get(value, [])}
    if same:
        shown = [f"{held_out.source.name(i)} is {train.source.name(j)}" for i, j in sorted(same.items())]
        _log.warning(
            "%d of %d held-out %s are in training too, with the same content: %s; remove one of each, or figures of held-out items say "
            "too much", len(same), len(held_out.names), train.media_type.many, first_few(shown),
        )  # fmt: skip


def _keys(part: FileIndex, rows: Iterable[int], key: Callable[[FileIndex, int], Any]) -> dict[Any, list[int]]:
    """{key(part, i): [rows i]}, without rows that cannot be read."""
    out: dict[Any, list[int]] = {}
    for i in rows:
        with contextlib.suppress(OSError):
            out.setdefault(key(part, i), []).append(i)
    return out


def _middle(part: FileIndex, i: int) -> tuple[int, bytes]:
    length = part.source.length(i)
    return length, part.source.piece(i, max(0, length // 2 - _PIECE // 2), _PIECE)


def _digest(part: FileIndex, i: int) -> bytes:
    return hashlib.sha256(part.source.piece(i, 0, part.source.length(i))).digest()
