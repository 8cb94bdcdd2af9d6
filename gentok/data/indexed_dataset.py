"""A set of listed items, decoded when asked for: what sets of images and of sounds share.

An item that cannot be read is skipped, counted and listed; in a batch its place is taken by the next readable one (`Batch.index` says
which), so that every process keeps its batch size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.file_index import DataError, FileIndex, reason_of, stop_if_too_many
from gentok.data.labels import Conditions
from gentok.distributed import all_sum
from gentok.interfaces import MediaDataset
from gentok.types import Condition, fingerprint

__all__ = ["IndexedDataset"]

_KEPT = 50
_log = logging.getLogger("gentok.data")


class IndexedDataset(MediaDataset):
    """The items of one split, whose headers are known to be readable. A subclass has `decode` and `__getitems__`.

    Args:
        kind: what the description calls the data.
        split: "train" or "held_out".
        index: of the items.
        conditions: of the items.
        max_broken: largest share of unreadable items.
        settings: what else than the items' names, stamps and conditions changes what a batch holds.
    """

    def __init__(self, kind: str, split: str, index: FileIndex, conditions: Conditions, max_broken: float, settings: Sequence[Any]):
        self.source, self.media_type = index.source, index.media_type
        self.condition_spec, self.max_broken, self._conditions = conditions.spec, max_broken, conditions
        content = fingerprint(index.names, index.stamps, *settings, *conditions.content)
        self.description = {"data": kind, "path": index.where, "split": split, "items": len(index.names), "content": content}
        self._lost, self._lost_count, self._left_out = index.broken, index.broken_count, index.left_out
        self._reasons: dict[int, str] = {}  # of what this process found broken
        # shared memory: what one loader worker finds broken, the others and the main process know
        self._broken = torch.zeros(len(index.names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> list[str]:
        """What messages call the items: their paths, or where in which shard they lie."""
        return [self.source.name(i) for i in range(len(self))]

    @property
    def labels(self) -> Tensor | None:
        """int64 [n], where there are classes."""
        return self._conditions.parts["class"].ids if "class" in self._conditions.parts else None

    @property
    def broken(self) -> list[str]:
        """The items that turned out to be unreadable so far, those with an unreadable header included."""
        return [*self._lost, *(self.source.name(i) for i in self._found_broken())]

    def _found_broken(self) -> list[int]:
        return self._broken.nonzero()[:, 0].tolist()

    def _broken_reasons(self, again: bool = True) -> dict[str, str]:
        """{name: reason} of the first broken items. again: whether those that a worker found are tried again to know theirs."""
        out = dict(list(self._lost.items())[:_KEPT])
        return out | {self.source.name(i): self._why(i, again) for i in self._found_broken()[: _KEPT - len(out)]}

    def _why(self, i: int, again: bool) -> str:
        if not again:
            return self._reasons.get(i, "found by another process")
        if i not in self._reasons:
            try:
                self.decode(i, *self.all_of(i))
                self._reasons[i] = "it could not be read when it was asked for"
            except (ValueError, OSError) as error:
                self._reasons[i] = reason_of(error, self.source.name(i))
        return self._reasons[i]

    @property
    def skipped(self) -> dict[str, Any]:
        """What turned out to be unreadable so far, and what else is not used.

        Returns:
            {"count", "of", "files": the first 50 that are unreadable, "reasons": {file: reason} of these}, and, where the place holds
            more than items, "left_out": {"count", "reasons": {file: reason} of the first 50, "summary": a line}.
        """
        reasons = self._broken_reasons()
        count = int(self._broken.sum()) + self._lost_count
        out: dict[str, Any] = {"count": count, "of": len(self) + self._lost_count, "files": list(reasons)}
        if reasons:
            out["reasons"] = reasons
        if self._left_out.count:
            out["left_out"] = {"count": self._left_out.count, "reasons": self._left_out.reasons(), "summary": str(self._left_out)}
        return out

    def agree(self, device: torch.device | str = "cpu") -> None:
        self._broken |= (all_sum(self._broken.long().to(device)) > 0).to(self._broken)

    def decode(self, i: int, *more: Any) -> Any:
        """Item i as an array or tensor.

        Args:
            i: its number.
            more: what else a subclass asks for, such as the part of a sound.

        Raises:
            ValueError, OSError: it cannot be read; a one-line error.
        """
        raise NotImplementedError

    def all_of(self, i: int) -> Sequence[Any]:
        """The further arguments of `decode` for the whole of item i."""
        return ()

    def attempt(self, i: int, *more: Any) -> Any:
        """decode(i, *more), or None where the item cannot be read, which is then remembered, counted and logged.

        Raises:
            DataError: too many items are unreadable.
        """
        if self._broken.numpy()[i]:
            return None
        try:
            return self.decode(i, *more)
        except (ValueError, OSError) as error:
            self._broken[i] = 1
            self._reasons[i] = reason_of(error, self.source.name(i))
            _log.warning("skipped: %s", error)
            count = int(self._broken.sum()) + self._lost_count
            reasons = self._broken_reasons(again=False)
            stop_if_too_many(reasons, count, len(self) + self._lost_count, self.max_broken, self.media_type.many)
            return None

    def readable(self, i: int, more: Callable[[int], Sequence[Any]] = lambda j: ()) -> tuple[int, Any]:
        """The first readable item at or behind i.

        Args:
            i: its number.
            more: gives the further arguments of `decode` for an item.

        Returns:
            Its number j, and decode(j, *more(j)).

        Raises:
            DataError: none can be read, or too many cannot.
        """
        for j in range(i, i + len(self)):
            j %= len(self)
            item = self.attempt(j, *more(j))
            if item is not None:
                return j, item
        raise DataError(f"none of the {len(self)} {self.media_type.many} beside {self.source.name(i)} can be read")

    def condition(self, index: Tensor) -> Condition:
        """The condition of the rows `index` int64 [B]."""
        return self._conditions.rows(index)
