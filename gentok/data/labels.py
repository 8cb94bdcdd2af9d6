"""From class names and captions of listed items to the parts of a Condition: classes by name or number, captions by characters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from gentok.data.file_index import FileIndex
from gentok.data.names import first_few
from gentok.types import ABSENT, Class, ClassSpec, ConditionSpec, Ids, IdsSpec

__all__ = ["condition_of", "spec_of"]

_log = logging.getLogger("gentok.data")


def spec_of(parts: dict[str, FileIndex], classes: Sequence[str] | None, caption_length: int) -> ConditionSpec:
    """What conditions items have.

    Args:
        parts: "train", by whose labels the classes go, and "held_out"; the texts of both give the alphabet.
        classes: names of the classes, in the order of their ids; None: those that occur.
        caption_length: characters after which captions are cut.

    Raises:
        ValueError: no item has a caption, where captions are read, or caption_length < 1.
    """
    train = parts["train"]
    specs: list[tuple[str, Any]] = []
    if train.labels is not None:
        specs.append(("class", ClassSpec(tuple(classes) if classes else _class_names(train.labels))))
    if train.captions is not None:
        specs.append(("text", _ids_spec([c for part in parts.values() for c in part.captions or ()], caption_length, train.where)))
    return ConditionSpec(tuple(specs))


def condition_of(spec: ConditionSpec, index: FileIndex) -> dict[str, Class | Ids]:
    """The conditions of all items of an index: {"class": ids int64 [n], "text": ids int32 [n, L]}, as far as `spec` has them.

    Raises:
        ValueError: a label that is no class of `spec`.
    """
    return {name: _part(part, index) for name, part in spec.parts}


def _class_names(labels: Sequence[str | None]) -> tuple[str, ...]:
    """In the order of their names; numbers in the order of their values."""
    names = {label for label in labels if label is not None}
    return tuple(sorted(names, key=lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else sorted(names))


def _part(spec: ClassSpec | IdsSpec, index: FileIndex) -> Class | Ids:
    if isinstance(spec, ClassSpec):
        if index.labels is None:
            raise ValueError(f"{index.where} has no classes, the training {index.media_type.many} have: {first_few(list(spec.names))}")
        place = {}
        for label in sorted(set(index.labels)):
            try:
                place[label] = int(spec.parse([label], "class").ids)
            except ValueError:
                place[label] = -1
            if place[label] < 0:  # "null" stands for no class where none is called so
                raise ValueError(f"{index.where} has the class {label!r}; the classes are {', '.join(spec.names[:12])}")
        return Class(torch.tensor([place[label] for label in index.labels], dtype=torch.int64))
    number = {symbol: i for i, symbol in enumerate(spec.alphabet)}
    ids = torch.full((len(index.names), spec.max_length), ABSENT, dtype=torch.int32)  # half the memory of what batches have
    for row, text in enumerate(index.captions or ()):
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
