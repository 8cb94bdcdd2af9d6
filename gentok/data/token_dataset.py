"""Cached tokens (or latents) as a data set: a file that gentok/data/token_cache.py wrote, mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.tensor_file import FileLayout, read_layout
from gentok.errors import FormatError
from gentok.interfaces import MediaDataset
from gentok.rng import RowRNG
from gentok.types import ABSENT, Batch, Class, Condition, ConditionSpec, Ids, IdsSpec, Latents, Tokens, TokenSpec, Vectors, VectorsSpec
from gentok.types.formats import fitted

__all__ = ["FORMAT", "TokenDataset", "read_token_file", "stored_name"]

FORMAT = 1
"""Of the file's header."""


_Count = Annotated[int, Field(ge=0)]
_HEADER = {"items": _Count, "views": Annotated[int, Field(ge=1)], "data": dict[str, Any]}


def stored_name(spec: TokenSpec) -> str:
    """The name of the tensor that holds the items: codes, or latents of a spec without vocabulary."""
    return "codes" if spec.vocab_sizes else "latents"


def read_token_file(path: Path) -> FileLayout:
    """Where the tensors of a token file lie. Raises FileNotFoundError or FormatError."""
    layout = read_layout(path, "tokens", FORMAT, "token file")
    header = layout.header
    if not {*_HEADER, "spec", "condition_spec"} <= set(header):
        raise FormatError(f"{path} is no token file of gentok; delete it, and it is made anew")
    try:
        fitted(header, _HEADER, "its header")
        spec = TokenSpec.from_dict(header["spec"])
        shapes = _shapes(spec, ConditionSpec.from_dict(header["condition_spec"]), header["items"], header["views"])
        for name, shape in shapes.items():
            if layout.shape(name) != shape and (name != "lengths" or name in layout.table):
                raise FormatError(f"{name} has {layout.shape(name) or 'nothing'}, its header means {shape}")
        if header["items"] and not layout.checked:
            _check_ranges(layout, spec)
    except FormatError as error:
        raise FormatError(f"{path} is damaged: {error}; delete it, and it is made anew") from None
    return layout


def _shapes(spec: TokenSpec, conditions: ConditionSpec, items: int, views: int) -> dict[str, tuple[int, ...]]:
    """Of all arrays."""
    if not items:
        return {"index": (0,)}
    shapes: dict[str, tuple[int, ...]] = {"index": (items,), "lengths": (items, views)}
    shapes[stored_name(spec)] = (items, views, spec.levels or spec.width or 0, spec.positions)
    for name, part in conditions.parts:
        if isinstance(part, VectorsSpec):
            shapes |= {f"condition.{name}.x": (items, part.max_length, part.width), f"condition.{name}.mask": (items, part.max_length)}
        else:
            shapes[f"condition.{name}"] = (items, part.max_length) if isinstance(part, IdsSpec) else (items,)
    return shapes


def _check_ranges(layout: FileLayout, spec: TokenSpec) -> None:
    """Of a file without a checksum: that every code is one, that latents are finite. In parts, in flat memory."""
    import numpy as np

    codes = layout.maps()[stored_name(spec)]  # [items, views, K, N], code + 1; or latents
    step = max(1, (1 << 24) // max(1, int(np.prod(codes.shape[1:]))))
    for start in range(0, len(codes), step):
        part = codes[start : start + step]
        if not spec.vocab_sizes:
            if not np.isfinite(part).all():
                raise FormatError("it has latents that are not finite")
            continue
        largest, least = part.max((0, 1, 3)), part.min()
        if least < 0 or any(code > vocab for code, vocab in zip(largest.tolist(), spec.vocab_sizes)):
            raise FormatError(f"it has codes beyond {spec.describe()}")


class TokenDataset(MediaDataset):
    """The cached tokens of one split: draws -> Batch(media=None, tokens, condition, index).

    The view of a draw is a pure function of (seed, epoch, index): within every `views` epochs each item shows each view once, in an
    order of its own.

    Args:
        path: the file.
        spec: that of the tokenizer that the generator belongs to; None: any.
        seed: of the order of the views.

    Attributes:
        spec: of the tokenizer that made the codes.
        views: how many of each item the file holds.
        header: of the file.

    Raises:
        FileNotFoundError: there is no file.
        FormatError: it is damaged, or holds the codes of another tokenizer.
    """

    def __init__(self, path: str | os.PathLike[str], spec: TokenSpec | None = None, seed: int = 0):
        self.path, self.seed = Path(path), seed
        self._layout = read_token_file(self.path)
        self.header = self._layout.header
        self.spec = TokenSpec.from_dict(self.header["spec"])
        self.condition_spec = ConditionSpec.from_dict(self.header["condition_spec"])
        if spec is not None and not self.spec.same_codes(spec):
            raise FormatError(
                f"{self.path} holds the codes of another tokenizer: the file has {self.spec.describe()}, the tokenizer {spec.describe()}; "
                "encode the set with this tokenizer (delete the file, or name another)"
            )
        self.views, self.description = int(self.header["views"]), dict(self.header["data"])
        self.media_shape = self.spec.media_shape
        self._arrays: dict[str, Any] | None = None

    def __len__(self) -> int:
        return int(self.header["items"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker maps the file itself; a pickled map would be a copy of it

    def _rows(self, key: str, rows: Any) -> Tensor:
        """Some rows of one stored tensor, copied out of the mapped file."""
        import numpy as np

        if self._arrays is None:
            try:
                self._arrays = self._layout.maps()
            except (OSError, ValueError) as error:  # numpy raises the latter where the file is too short
                what = f"the token file {self.path} has disappeared or changed since it was opened"
                raise OSError(f"{what}: start again, and it is made anew") from error
        out = self._arrays[key][rows]
        return torch.from_numpy(np.ascontiguousarray(out.astype(np.int64) if out.dtype.kind in "ui" else out))

    def numbers(self, rows: Sequence[int]) -> Tensor:
        """int64 [len(rows)]: the number of each of these items within the set that was encoded, which is another where items could not be
        read."""
        return self._rows("index", torch.as_tensor(rows).numpy())

    @property
    def sizes(self) -> list[int] | None:
        """The length of each item, of its first view; None where all are equally long."""
        return self._rows("lengths", (slice(None), 0)).tolist() if "lengths" in self._layout.table else None

    def view_of(self, index: Tensor, epoch: Tensor) -> Tensor:
        """The view of each item in an epoch.

        Args:
            index: int64 [B], items.
            epoch: int64 [B].

        Returns:
            int64 [B], 0..views-1.
        """
        view = torch.zeros_like(index)
        if self.views > 1:
            for cycle in (epoch // self.views).unique().tolist():
                now = epoch // self.views == cycle
                order = RowRNG.of(self.seed, index[now], step=cycle).permutation(self.views)
                view[now] = order.gather(1, (epoch[now] % self.views)[:, None])[:, 0]
        return view

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, epoch = locate(draws, len(self))
        rows, view = index.numpy(), self.view_of(index, epoch).numpy()
        lengths = self._rows("lengths", (rows, view)) if "lengths" in self._layout.table else None
        stored = self._rows(stored_name(self.spec), (rows, view))
        tokens = Tokens(stored + ABSENT, self.spec, lengths) if self.spec.vocab_sizes else Latents(stored, self.spec)
        return Batch(None, index, self._condition(rows), lengths=lengths, tokens=tokens)

    def _condition(self, rows: Any) -> Condition:
        parts: dict[str, Any] = {}
        for name, part in self.condition_spec.parts:
            key = f"condition.{name}"
            if part.kind == "vectors":
                parts[name] = Vectors(self._rows(f"{key}.x", rows), self._rows(f"{key}.mask", rows))
            else:
                parts[name] = (Class if part.kind == "class" else Ids)(self._rows(key, rows))
        return Condition(parts)
