"""Arrays that grow, piece by piece, in files beside the one that will hold them: what they hold is never in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gentok.atomic import named_errors, sweep, unfinished
from gentok.data.tensor_file import StoredArray

__all__ = ["GrowingArrays"]


class GrowingArrays:
    """`with GrowingArrays(target) as arrays: arrays.add({name: piece}); ...; write_arrays(target, arrays.pieces(), header)`.

    What a killed process leaves is removed by the next one that writes into the folder (gentok.atomic.sweep).

    Args:
        target: the file that will hold them; its folder is there.
    """

    def __init__(self, target: Path):
        self.target = target
        self.folder = unfinished(target, "-arrays")
        self._files: dict[str, Any] = {}
        self._kinds: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._lengths: dict[str, int] = {}

    def __enter__(self) -> GrowingArrays:
        sweep(self.target.parent)
        with named_errors(self.target, "paths.cache"):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, pieces: Mapping[str, Any]) -> None:
        """Behind what is there. pieces: name -> numpy array; of a name, all of one type and, but for the first axis, one shape.

        Raises:
            ValueError: a piece is of another type or shape than those before.
            OSError: the disk is full.
        """
        for name, piece in pieces.items():
            kind = (piece.dtype, tuple(piece.shape[1:]))
            if self._kinds.setdefault(name, kind) != kind:
                before = self._kinds[name]
                raise ValueError(f"{name} was {before[0]} of shape [n, {before[1]}], and is {kind[0]} of [n, {kind[1]}] now")
            with named_errors(self.target, "paths.cache"):
                if name not in self._files:
                    self._files[name] = open(self._path(name), "wb", buffering=0)  # noqa: SIM115 closed at the end
                data = memoryview(piece.tobytes())
                while data:
                    data = data[self._files[name].write(data) :]
            self._lengths[name] = self._lengths.get(name, 0) + len(piece)

    def pieces(self) -> dict[str, list[StoredArray]]:
        """name -> the one array of all its pieces, for `write_arrays`."""
        return {
            name: [StoredArray(self._path(name), 0, dtype, (self._lengths[name], *rest))] for name, (dtype, rest) in self._kinds.items()
        }

    def __len__(self) -> int:
        """Rows of the longest."""
        return max(self._lengths.values(), default=0)

    def _path(self, name: str) -> Path:
        return self.folder / name
