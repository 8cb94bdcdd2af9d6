"""Items by shard, offset and size, read from files of this machine or, by fsspec, from anywhere (s3, gs, hf, http, ...).

Behind a url every item is one request for just its bytes, and those of a batch are asked for together (`ahead`), so that their waits
overlap; loader workers (`trainer.workers`) fetch whole batches ahead. A request that fails is repeated after a while: a network's bad
moment would otherwise leave an item out, and the run would no longer be the one that it would have been.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from gentok.data.names import printable
from gentok.data.tar_index import is_url, open_shard

__all__ = ["ShardSource"]

_OPEN = 32
"""Shards that a process keeps open."""
_WAITS = (1.0, 4.0, 15.0)
"""Seconds before each repetition of a request."""


class ShardSource:
    """The items of shards. Arrays and no lists of objects: forked workers would copy those by counting references.

    Args:
        urls: of the shards.
        shard: int32 [n], the number of each item's shard.
        offset, size: int64 [n], of each item, in bytes.
        member: bytes [n], its name in the shard.
    """

    def __init__(self, urls: list[str], shard: Any, offset: Any, size: Any, member: Any):
        self.urls, self.shard, self.offset, self.size, self.member = urls, shard, offset, size, member
        self.local = not any(map(is_url, urls))
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._ahead: dict[int, bytes] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_ahead": {}}

    def name(self, i: int) -> str:
        return f"{printable(self.urls[self.shard[i]])}:{self.member[i].decode(errors='replace')}"

    def open(self, i: int) -> bytes:
        data = self._ahead.pop(i, None)
        if data is None:
            data = self.piece(i, 0, self.length(i))
        if len(data) < self.size[i]:
            raise OSError(f"{self.name(i)}: its shard is cut short")
        return data

    def ahead(self, rows: Sequence[int]) -> None:
        """Fetches items that are going to be opened, side by side; those behind a url, which are kept until then.

        What fails here is fetched again when it is opened, and then says why.
        """
        self._ahead = {}
        groups: dict[str, list[int]] = {}
        for i in dict.fromkeys(rows):
            url = self.urls[self.shard[i]]
            if is_url(url) and "::" not in url:  # a chain keeps copies of its own
                groups.setdefault(url.partition("://")[0], []).append(i)
        for found in groups.values():
            try:
                system, _ = _place(self.urls[self.shard[found[0]]])
                paths = [_place(self.urls[self.shard[i]])[1] for i in found]
                starts = [int(self.offset[i]) for i in found]
                ends = [start + self.length(i) for start, i in zip(starts, found)]
                data = system.cat_ranges(paths, starts, ends, on_error="return")
            except Exception:  # every file system has errors of its own
                continue
            whole = [isinstance(one, (bytes, bytearray)) and len(one) == self.length(i) for i, one in zip(found, data)]
            self._ahead |= {i: bytes(one) for i, one, good in zip(found, data, whole) if good}

    def length(self, i: int) -> int:
        return int(self.size[i])

    def piece(self, i: int, start: int, count: int) -> bytes:
        count = max(0, min(count, self.length(i) - start))
        place, url = int(self.offset[i]) + start, self.urls[self.shard[i]]
        if not is_url(url):
            return self._read(int(self.shard[i]), place, count)
        waits = list(_WAITS)
        while True:
            try:
                return self._read(int(self.shard[i]), place, count) if "::" in url else _range(url, place, count)
            except Exception as error:  # every file system has errors of its own
                if not waits or isinstance(error, (FileNotFoundError, PermissionError)):
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise OSError(f"{self.name(i)} cannot be fetched: {reason}") from error
            self._files.pop(int(self.shard[i]), None)
            time.sleep(waits.pop(0))

    def _read(self, shard: int, place: int, count: int) -> bytes:
        file = self._file(shard)
        file.seek(place)
        return file.read(count)

    def _file(self, shard: int) -> Any:
        """This process's own open file: a descriptor that is shared with a forked worker would share its position."""
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        if shard not in self._files:
            while len(self._files) >= _OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = open_shard(self.urls[shard])
        self._files.move_to_end(shard)
        return self._files[shard]

    def select(self, rows: Sequence[int]) -> ShardSource:
        import numpy as np

        rows = np.asarray(rows, dtype=np.int64)
        return ShardSource(self.urls, self.shard[rows], self.offset[rows], self.size[rows], self.member[rows])


def _place(url: str) -> tuple[Any, str]:
    """(file system, path within it) of this process: fsspec keeps the systems, and makes them anew in a forked process."""
    import fsspec

    return fsspec.core.url_to_fs(url)


def _range(url: str, start: int, count: int) -> bytes:
    if not count:
        return b""
    system, path = _place(url)
    data = bytes(system.cat_file(path, start=start, end=start + count))
    return data[start : start + count] if len(data) > count else data  # of a server that knows no ranges
