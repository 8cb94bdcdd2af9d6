"""Data sets that a program already has: torch data sets, lists, or anything that can be gone through, of images or sounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gentok.data.datasets import locate
from gentok.data.progress import progress
from gentok.interfaces import MediaData, MediaDataset
from gentok.settings import PositiveInt
from gentok.types import Batch, Class, ClassSpec, Condition, ConditionSpec, fingerprint
from gentok.types.media import as_media

__all__ = ["OwnData"]


class OwnData(MediaData):
    """Two sets of your own.

    Args:
        train, held_out: map-style torch data sets, lists, or iterables with an end (which are kept in memory), whose items are what
            `gentok.types.media.as_media` takes, or pairs (item, label). An item must be the same whenever it is asked for:
            `task.augment` is for augmentation. held_out=None: the last twentieth of `train`, which should then be in no order.
        classes: names of the classes whose numbers the labels are; None: the labels that occur, sorted.
        sample_rate: Hz; of sounds, and only of these.

    Raises:
        ValueError: an item is none, images differ in size, or some items have labels and others none.
    """

    def __init__(
        self,
        train: Iterable[Any],
        held_out: Iterable[Any] | None = None,
        classes: Sequence[str] | None = None,
        sample_rate: PositiveInt | None = None,
    ):
        items = _indexed(train)
        if held_out is None:
            last = max(1, len(items) // 20)
            parts = {"train": _Part(items, range(len(items) - last)), "held_out": _Part(items, range(len(items) - last, len(items)))}
        else:
            other = _indexed(held_out)
            parts = {"train": _Part(items, range(len(items))), "held_out": _Part(other, range(len(other)))}
        found = {name: part.look(name) for name, part in parts.items()}
        shapes = {shape for shape, _, _ in found.values()}
        labels = [label for _, given, _ in found.values() for label in given]
        self.sample_rate = sample_rate
        dims = {len(shape) for shape in shapes}
        if len(dims) > 1 or (dims == {2}) != (sample_rate is not None):
            raise ValueError("sounds [C, T] need sample_rate=HZ, images [C, H, W] none; and both sets hold the same kind")
        if dims == {3} and len(shapes) > 1:
            raise ValueError(f"the images of the two sets differ in size: {' and '.join(map(str, sorted(shapes)))}")
        self.longest_item = max(shape[-1] for shape in shapes) if sample_rate else None
        self.media_shape = (next(iter(shapes))[0], self.longest_item) if sample_rate else next(iter(shapes))
        names = [str(name) for name in classes] if classes is not None else sorted({str(label) for label in labels}, key=_order)
        self.condition_spec = ConditionSpec((("class", ClassSpec(tuple(names))),) if labels else ())
        for name, part in parts.items():
            _, given, content = found[name]
            ids = torch.tensor([_class_id(label, names, classes is not None) for label in given], dtype=torch.int64)
            setattr(self, name, _OwnSet(part, name, ids if labels else None, self, content))


class _Part:
    """Some rows of a set."""

    def __init__(self, items: Any, rows: range):
        self.items, self.rows = items, rows

    def read(self, index: int) -> tuple[Tensor, Any]:
        item = self.items[self.rows[index]]
        media, label = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        return as_media(media), label.item() if isinstance(label, (Tensor, np.generic)) else label

    def look(self, name: str) -> tuple[tuple[int, ...], list[Any], str]:
        """(the largest shape, labels, a hash of all items); every item is read once."""
        shapes, labels, hashes = set(), [], []
        if not len(self.rows):
            raise ValueError(f"the set {name} is empty")
        with progress(f"reading {name}", len(self.rows), lazy=len(self.rows) < 1000) as advance:
            for index in range(len(self.rows)):
                media, label = self.read(index)
                shapes.add(tuple(media.shape))
                hashes.append(fingerprint(media))
                labels += [] if label is None else [label]
                if len(self.rows) >= 1000:
                    advance(1)
        if labels and len(labels) != len(self.rows):
            raise ValueError(f"{len(labels)} of {len(self.rows)} items of {name} have a label: give one to each, or to none")
        if len({shape[:1] if len(shape) == 2 else shape for shape in shapes}) > 1:
            some = " and ".join(map(str, sorted(shapes)[:2]))
            raise ValueError(f"the items of {name} have several sizes, such as {some}: make them equal")
        return max(shapes, key=lambda shape: shape[-1]), labels, fingerprint(hashes, labels)


class _OwnSet(MediaDataset):
    def __init__(self, part: _Part, name: str, labels: Tensor | None, data: OwnData, content: str):
        self.part, self.labels, self.condition_spec, self.media_shape = part, labels, data.condition_spec, tuple(data.media_shape or ())
        self.sample_rate = data.sample_rate
        self.description = {"data": "own", "split": name, "items": len(part.rows), "content": content}

    def __len__(self) -> int:
        return len(self.part.rows)

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, _ = locate(draws, len(self))
        media = [self.part.read(int(i))[0] for i in index]
        condition = Condition({} if self.labels is None else {"class": Class(self.labels[index])})
        if self.sample_rate is None:
            return Batch(torch.stack(media), index, condition)
        lengths = torch.tensor([wave.shape[1] for wave in media], dtype=torch.int64)
        waves = pad_sequence([wave.T for wave in media], batch_first=True).transpose(1, 2)
        return Batch(waves, index, condition, lengths=lengths)


def _indexed(items: Any) -> Any:
    """A set that knows its length and is asked by number."""
    return items if hasattr(items, "__len__") and hasattr(items, "__getitem__") else list(items)


def _class_id(label: Any, names: list[str], numbered: bool) -> int:
    if numbered and isinstance(label, int) and 0 <= label < len(names):
        return label
    if str(label) not in names:
        raise ValueError(f"the label {label!r} is no class; there are {len(names)}: {', '.join(names[:12])}")
    return names.index(str(label))


def _order(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdigit() else (1, 0, label)
