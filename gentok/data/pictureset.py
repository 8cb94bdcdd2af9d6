"""What folders, manifests and shards of pictures share: listing, splitting, and a set that decodes when asked.

At the start only headers are read (cheap); pictures are decoded batch by batch, in the loader's workers, or all at once into memory. One
that cannot be read is skipped, counted and listed; in a batch its place is taken by the next readable one (`Batch.index` says which), so
that every process keeps its batch size. More than a share `max_broken` of them stops the run; a single one does so only where that is 0.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gentok.data.pictures import picture_size, read_pixels, to_media
from gentok.data.progress import progress
from gentok.data.sets import locate
from gentok.distributed import all_sum
from gentok.tokens import ABSENT, Batch, Class, ClassSpec, Condition, ConditionSpec, Ids, IdsSpec, fingerprint

__all__ = ["DataError", "PictureSource", "Files", "Listing", "PictureData", "PictureSet", "SUFFIXES", "some"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_LISTED = 5
_KEPT = 50
_MANY = 5000
"""From this many pictures on, reading headers shows a bar."""
_log = logging.getLogger("gentok.data")


class DataError(ValueError):
    """Too many pictures are broken. A loader's worker hands its errors on with the whole traceback as their message; here the last line
    of it, which is the message itself, is kept."""

    def __init__(self, message: str):
        super().__init__(str(message).strip().splitlines()[-1].removeprefix(f"{__name__}.DataError: "))


class PictureSource(Protocol):
    """Where pictures lie; sent to the loader's workers."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What messages call picture i."""

    def open(self, i: int) -> str | bytes:
        """The path or the bytes of picture i. Raises OSError."""

    def select(self, rows: Sequence[int]) -> PictureSource:
        """A source of some of the pictures."""


class Files:
    """Pictures that are files."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.paths = [os.fspath(p) for p in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def open(self, i: int) -> str:
        return self.paths[i]

    def select(self, rows: Sequence[int]) -> Files:
        return Files([self.paths[i] for i in rows])


@dataclass
class Listing:
    """What was found at one place, before anything is decoded. The lists have one entry per picture.

    where: for messages. names: stable within the place; the split goes by them. stamps: what changes when a picture's content does.
    labels: class names, None for one that has none; or no list at all. captions: texts. sizes: (height, width) upright, None: the header
    cannot be read; no list: not known yet. lost: what cannot be read beside the pictures listed, `lost_count` of them.
    """

    where: str
    names: list[str]
    source: Any
    stamps: list[Any]
    labels: list[str | None] | None = None
    captions: list[str] | None = None
    sizes: list[tuple[int, int] | None] | None = None
    lost: list[str] = field(default_factory=list)
    lost_count: int = 0

    def select(self, rows: Sequence[int]) -> Listing:
        def pick(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in rows]

        return Listing(
            self.where, pick(self.names) or [], self.source.select(rows), pick(self.stamps) or [], pick(self.labels), pick(self.captions),
            pick(self.sizes),
        )  # fmt: skip

    def without_broken(self, max_broken: float) -> Listing:
        """The pictures whose header can be read and whose label is there; the others are listed. Raises DataError where they are many."""
        if self.sizes is None:
            self.sizes = _sizes(self.source)
        good = [i for i, size in enumerate(self.sizes) if size is not None and (self.labels is None or self.labels[i] is not None)]
        kept = set(good)
        lost = [self.source.name(i) for i in range(len(self.names)) if i not in kept] + self.lost
        count = len(self.names) - len(good) + self.lost_count
        total = len(self.names) + self.lost_count
        if count:
            _stop_if_too_many(lost, count, total, max_broken)
            _log.warning("%d of %d pictures in %s cannot be read and are skipped: %s", count, total, self.where, some(lost))
        out = self.select(good)
        out.lost, out.lost_count = lost, count
        return out


class PictureData:
    """media_shape (channels, H, W), condition_spec, train and held_out, of a Listing and another one, or a share, that is held out.

    size, channels, resize, classes, captions, max_broken, split_seed, in_memory: see conf/data/*.yaml, where users set them.
    Raises ValueError with a line.
    """

    def __init__(
        self,
        kind: str,
        listing: Listing,
        held_out: Listing | float,
        *,
        size: int | Sequence[int] | None,
        channels: int,
        resize: str,
        max_broken: float,
        split_seed: int,
        classes: Sequence[str] | None = None,
        captions: bool = False,
        caption_length: int = 128,
        in_memory: bool = False,
    ):
        if resize not in ("crop", "none"):
            raise ValueError(f"data.resize={resize!r}: 'crop' or 'none'")
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}: 1 (grey) or 3 (RGB)")
        if not isinstance(held_out, Listing) and not 0 < held_out < 1:
            raise ValueError(f"data.held_out={held_out}: a share between 0 and 1, or what to hold out instead")
        if not 0 <= max_broken <= 1:
            raise ValueError(f"data.max_broken={max_broken}: a share between 0 and 1")
        found = len(listing.names)
        if isinstance(held_out, Listing):
            listing, held_out = listing.without_broken(max_broken), held_out.without_broken(max_broken)
            parts = {"train": listing, "held_out": held_out}
        else:
            # of all that are listed: a file that breaks leaves the others where they are
            kept_names = {listing.names[i] for i in _held_out(listing.names, listing.labels, held_out, split_seed)}
            listing = listing.without_broken(max_broken)
            rows = {"train": [], "held_out": []}
            for i, name in enumerate(listing.names):
                rows["held_out" if name in kept_names else "train"].append(i)
            parts = {split: listing.select(chosen) for split, chosen in rows.items()}
            parts["train"].lost, parts["train"].lost_count = listing.lost, listing.lost_count
        for split, part in parts.items():
            if not part.names:
                raise ValueError(
                    f"no picture is left for {split} ({part.where} has {found}): add some, or name others to hold out with data.held_out"
                )
        height, width = _common_size(Counter(s for part in parts.values() for s in part.sizes or ()), size, resize, listing.where)
        self.media_shape = (channels, height, width)
        specs: list[tuple[str, Any]] = []
        if listing.labels is not None:
            specs.append(("class", ClassSpec(tuple(classes) if classes else _class_names(listing.labels))))
        if captions:
            specs.append(("text", _ids_spec([c for part in parts.values() for c in part.captions or ()], caption_length, listing.where)))
        self.condition_spec = ConditionSpec(tuple(specs))
        self.train, self.held_out = (
            PictureSet(kind, split, part, self.media_shape, self.condition_spec, max_broken, in_memory) for split, part in parts.items()
        )


class PictureSet:
    """The pictures of one split, whose headers are known to be readable; decoded when asked for, or kept as uint8 (`in_memory`)."""

    def __init__(
        self,
        kind: str,
        split: str,
        listing: Listing,
        media_shape: tuple[int, int, int],
        condition_spec: ConditionSpec,
        max_broken: float,
        in_memory: bool = False,
    ):
        self.source, self.media_shape, self.condition_spec, self.max_broken = listing.source, media_shape, condition_spec, max_broken
        self._parts = {name: _part(spec, listing) for name, spec in condition_spec.parts}
        content = fingerprint(listing.names, listing.stamps, media_shape, *(part.ids for part in self._parts.values()))
        self.description = {"data": kind, "path": listing.where, "split": split, "items": len(listing.names), "content": content}
        self._lost, self._lost_count = listing.lost, listing.lost_count
        # shared memory: what one loader worker finds broken, the others and the main process know
        self._broken = torch.zeros(len(listing.names), dtype=torch.uint8).share_memory_()
        self._memory: Tensor | None = None
        if in_memory:
            self._load()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> list[str]:
        """What messages call the pictures: their paths, or where in which shard they lie."""
        return [self.source.name(i) for i in range(len(self))]

    @property
    def labels(self) -> Tensor | None:
        """int64 [n], where there are classes."""
        return self._parts["class"].ids if "class" in self._parts else None

    @property
    def broken(self) -> list[str]:
        """The pictures that turned out to be unreadable so far, those with an unreadable header included."""
        return self._lost + [self.source.name(i) for i in self._broken.nonzero()[:, 0].tolist()]

    @property
    def skipped(self) -> dict[str, Any]:
        """What turned out to be unreadable so far: {"count", "of", "files": the first 50}."""
        broken = self.broken
        count = int(self._broken.sum()) + self._lost_count
        return {"count": count, "of": len(self) + self._lost_count, "files": broken[:_KEPT]}

    def agree(self, device: torch.device | str = "cpu") -> None:
        """What one process found broken, all know. To be called by all of them; device: where their collectives take tensors."""
        self._broken |= (all_sum(self._broken.long().to(device)) > 0).to(self._broken)

    def _load(self) -> None:
        memory = torch.zeros(len(self), *self.media_shape, dtype=torch.uint8).share_memory_()
        with progress("decoding", len(self), "pictures") as advance:
            for start in range(0, len(self), 256):
                rows = range(start, min(start + 256, len(self)))
                for i in rows:
                    pixels = self._decode(i)
                    if pixels is not None:
                        memory[i] = torch.from_numpy(pixels if pixels.dtype == "uint8" else pixels.round())
                advance(len(rows))
        self._memory = memory

    def _decode(self, i: int) -> Any:
        """Array [C, H, W], uint8 or float on the scale 0..255; None where it cannot be read, which is then known, counted and said."""
        if self._broken.numpy()[i]:
            return None
        channels, height, width = self.media_shape
        try:
            return read_pixels(self.source.open(i), channels, (height, width), self.source.name(i))
        except (ValueError, OSError) as error:
            self._broken[i] = 1
            _log.warning("skipped: %s", error)
            count = int(self._broken.sum()) + self._lost_count
            _stop_if_too_many(self.broken, count, len(self) + self._lost_count, self.max_broken)
            return None

    def _read(self, i: int) -> tuple[int, Any]:
        """The first readable picture at or behind i."""
        for j in range(i, i + len(self)):
            j %= len(self)
            if self._memory is not None and self._broken[j]:
                continue
            pixels = self._decode(j) if self._memory is None else self._memory[j].numpy()
            if pixels is not None:
                return j, pixels
        raise DataError(f"none of the {len(self)} pictures beside {self.source.name(i)} can be read")

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        import numpy as np

        index, _ = locate(draws, len(self))
        if self._memory is not None and not self._broken[index].any():
            media = self._memory[index]
        else:
            rows = [self._read(i) for i in index.tolist()]
            index = torch.tensor([j for j, _ in rows], dtype=torch.int64)
            media = torch.from_numpy(np.stack([pixels for _, pixels in rows]))  # float where one of them is
        parts = {name: type(part)(part.ids[index].long()) for name, part in self._parts.items()}
        return Batch(to_media(media), index, Condition(parts))

    def __getitem__(self, draw: int) -> Batch:
        return self.__getitems__([draw])


# -------------------------------------------------------------------------------------------------------------- conditions


def _class_names(labels: Sequence[str | None]) -> tuple[str, ...]:
    """In the order of their names; numbers in the order of their values."""
    names = {label for label in labels if label is not None}
    return tuple(sorted(names, key=lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else sorted(names))


def _part(spec: ClassSpec | IdsSpec, listing: Listing) -> Class | Ids:
    if isinstance(spec, ClassSpec):
        if listing.labels is None:
            raise ValueError(f"{listing.where} has no classes, the training pictures have: {some(list(spec.names))}")
        place = {}
        for label in sorted(set(listing.labels)):
            try:
                place[label] = int(spec.parse([label], "class").ids)
            except ValueError as error:
                raise ValueError(f"{listing.where} has the class {label!r}; the classes are {', '.join(spec.names[:12])}") from error
        return Class(torch.tensor([place[label] for label in listing.labels], dtype=torch.int64))
    number = {symbol: i for i, symbol in enumerate(spec.alphabet)}
    ids = torch.full((len(listing.names), spec.max_length), ABSENT, dtype=torch.int32)  # half the memory of what batches have
    for row, text in enumerate(listing.captions or ()):
        cut = text[: spec.max_length]
        ids[row, : len(cut)] = torch.tensor([number[c] for c in cut], dtype=torch.int32)
    return Ids(ids)


def _ids_spec(captions: Sequence[str], longest: int, where: str) -> IdsSpec:
    if longest < 1:
        raise ValueError(f"data.caption_length={longest}: characters, 1 or more")
    if not any(captions):
        raise ValueError(f"captions were asked for, {where} has none: data.captions=null trains without")
    long = sum(len(c) > longest for c in captions)
    if long:
        _log.warning("%d of %d captions have more than data.caption_length=%d characters and are cut there", long, len(captions), longest)
    return IdsSpec(tuple(sorted({c for text in captions for c in text[:longest]})), min(longest, max(map(len, captions))))


# --------------------------------------------------------------------------------------------------- splits, sizes, broken


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


def _sizes(source: PictureSource) -> list[tuple[int, int] | None]:
    out: list[tuple[int, int] | None] = []
    with progress("reading headers", len(source), "pictures", len(source) >= _MANY) as advance:
        for i in range(len(source)):
            try:
                out.append(picture_size(source.open(i), source.name(i)))
            except (ValueError, OSError):
                out.append(None)
            advance(1)
    return out


def _stop_if_too_many(broken: list[str], count: int, total: int, max_broken: float) -> None:
    if count >= total:
        raise DataError(f"none of the {total} pictures can be read: {some(broken)}")
    if count > (max(max_broken * total, 1.0) if max_broken else 0.0):
        raise DataError(
            f"{count} of {total} pictures cannot be read, more than the share data.max_broken={max_broken:g} allows: {some(broken)}"
        )


def some(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _common_size(sizes: Counter[Any], size: int | Sequence[int] | None, resize: str, where: str) -> tuple[int, int]:
    wanted = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if wanted is not None and (len(wanted) != 2 or min(wanted) < 1):
        raise ValueError(f"data.size={size}: a side in pixels, or [height, width]")
    if wanted is not None and resize == "crop":
        return wanted
    shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    if wanted is None and len(sizes) > 1:
        raise ValueError(f"the pictures in {where} have {len(sizes)} sizes: {shown}; say which one the model shall see: data.size=SIDE")
    if wanted is not None and set(sizes) != {wanted}:
        raise ValueError(f"data.resize=none demands pictures of {wanted[1]}x{wanted[0]}; {where} has {shown}; use data.resize=crop")
    return wanted or next(iter(sizes))
