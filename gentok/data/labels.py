"""From class names and captions of listed items to the parts of a Condition: classes by name or number, captions by characters or as a
frozen text encoder writes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.file_index import FileIndex
from gentok.data.names import first_few
from gentok.nn.text_encoder import TextEncoder
from gentok.types import ABSENT, Class, ClassSpec, Condition, ConditionSpec, Ids, IdsSpec, Vectors, VectorsSpec, fingerprint

__all__ = ["Conditions", "spec_of"]

_log = logging.getLogger("gentok.data")


def spec_of(
    parts: dict[str, FileIndex],
    classes: Sequence[str] | None,
    caption_length: int,
    text_encoder: TextEncoder | None = None,
    by_words: bool = False,
) -> ConditionSpec:
    """What conditions items have.

    Args:
        parts: "train", by whose labels the classes go, and "held_out"; the texts of both give the alphabet.
        classes: names of the classes, in the order of their ids; None: those that occur.
        caption_length: characters, words, or tokens of the text encoder, after which captions are cut.
        text_encoder: makes vectors of captions; None: they become ids.
        by_words: the ids are those of words, of which those of "train" are known, and not of characters.

    Raises:
        ValueError: no item has a caption, where captions are read, or there is no text encoder in its folder.
    """
    train = parts["train"]
    specs: list[tuple[str, Any]] = []
    if train.labels is not None:
        specs.append(("class", ClassSpec(tuple(classes) if classes else _class_names(train.labels))))
    if train.captions is not None:
        captions = [c for part in parts.values() for c in part.captions or ()]
        if not any(captions):
            raise ValueError(f"captions were asked for, {train.where} has none: data.captions=null trains without")
        if text_encoder is None:
            of: IdsSpec | VectorsSpec = _ids_spec(captions, caption_length, train.captions if by_words else None)
        else:
            of = _vectors_spec(captions, caption_length, text_encoder)
        specs.append(("text", of))
    return ConditionSpec(tuple(specs))


class Conditions:
    """The conditions of all items of an index.

    Args:
        spec: what they are: classes, ids, or the vectors of a text encoder, which are computed whenever a row is asked for.
        index: of the items.
        text_encoder: that of `spec_of`.

    Attributes:
        spec: as given.
        parts: classes int64 [n] and ids int32 [n, L] by their names.
        content: what a fingerprint of the items takes of their conditions.

    Raises:
        ValueError: a label that is no class of `spec`.
    """

    def __init__(self, spec: ConditionSpec, index: FileIndex, text_encoder: TextEncoder | None = None):
        self.spec = spec
        self.parts = {name: _part(part, index) for name, part in spec.parts if not isinstance(part, VectorsSpec)}
        self._vectors = {name: part for name, part in spec.parts if isinstance(part, VectorsSpec)}
        self._texts, self._encoder = index.captions or [], text_encoder
        read = [[part.encoder, part.max_length, self._texts] for part in self._vectors.values()]
        self.content = [*(part.ids for part in self.parts.values()), *([fingerprint(read)] if read else [])]

    def rows(self, index: Tensor) -> Condition:
        """Those of the rows `index` int64 [B]."""
        parts: dict[str, Class | Ids | Vectors] = {name: type(part)(part.ids[index].long()) for name, part in self.parts.items()}
        for name, part in self._vectors.items():
            assert self._encoder is not None
            parts[name] = self._encoder([self._texts[i] for i in index.tolist()], part.max_length)
        return Condition(parts)


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
        known = [word for word in text.split() if word in number] if spec.of_words else text
        cut = known[: spec.max_length]
        ids[row, : len(cut)] = torch.tensor([number[symbol] for symbol in cut], dtype=torch.int32)
    return Ids(ids)


def _ids_spec(captions: Sequence[str], longest: int, words_of: Sequence[str] | None) -> IdsSpec:
    """words_of: the captions whose words are symbols; None: characters are, of all captions."""
    lengths = [len(text if words_of is None else text.split()) for text in captions]
    long = sum(length > longest for length in lengths)
    if long:
        what = "characters" if words_of is None else "words"
        _log.warning("%d of %d captions have more than data.caption_length=%d %s and are cut there", long, len(captions), longest, what)
    if words_of is None:
        symbols = {c for text in captions for c in text[:longest]}
    else:
        symbols = {word for text in words_of for word in text.split()}
        symbols |= set() if any(len(word) > 1 for word in symbols) else {"<word>"}  # which tells words from characters
    return IdsSpec(tuple(sorted(symbols)), min(longest, max(lengths)))


def _vectors_spec(captions: Sequence[str], longest: int, encoder: TextEncoder) -> VectorsSpec:
    length = min(longest, encoder.longest or longest)
    counts = encoder.lengths(captions)
    long = sum(count > length for count in counts)
    if long:
        _log.warning("%d of %d captions have more than %d tokens of the text encoder and are cut there", long, len(captions), length)
    elif max(counts) <= length // 2:
        _log.warning(
            "the longest caption has %d tokens, and room is kept for %d of each: data.caption_length=%d keeps as much as is needed",
            max(counts), length, max(counts),
        )  # fmt: skip
    return VectorsSpec(encoder.width, length, encoder.name)
