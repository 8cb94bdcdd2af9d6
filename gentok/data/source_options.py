"""Options of data components that several of them take: where items come from, and what becomes of them.

A data component is a source (folder, manifest, shards) of a media type (images, sounds). Each of the two declares its options once, in a
dataclass, and a constructor takes the fields of both: `**options: Annotated[Any, FolderOptions, ImageOptions]` (gentok/build.py reads
this). conf/data/*.yaml has them all, with a comment each.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gentok.data.file_index import FileIndex, MediaType
from gentok.interfaces import LocalPath
from gentok.nn.text_encoder import TextEncoder
from gentok.settings import CheckedDataclass, Fraction, NonNegativeInt, PositiveInt

__all__ = ["CaptionOptions", "Found", "LabelOptions", "MediumOptions", "divide", "refuse_address"]


@dataclass(frozen=True)
class Found:
    """What a source has found.

    Attributes:
        index: of its items.
        held_out: the items to hold out, or the share of `index`.
        classes: names of the classes, in the order of their ids; None: those that occur, if any.
        caption_length: characters, or tokens of the text encoder, after which captions are cut.
        text_encoder: of captions that become vectors; None: they become ids.
    """

    index: FileIndex
    held_out: FileIndex | float
    classes: Sequence[str] | None = None
    caption_length: int = 128
    text_encoder: TextEncoder | None = None


@dataclass(frozen=True)
class LabelOptions(CheckedDataclass):
    """Options of every source.

    Attributes:
        held_out: share of the items that is held out (of each class; chosen by name, so that new items leave the others where they are),
            or a second place, whose items are.
        classes: null takes the labels as classes where there are labels; true demands them; false ignores them; a list names the
            classes in the order of their ids (not of folders), and labels are then names of it or ids.
    """

    held_out: float | LocalPath | Sequence[LocalPath] = 0.05
    classes: bool | Sequence[str] | None = None

    def find(self, place: Any, media_type: MediaType) -> Found:
        """Lists the items of a place, and those of the second one where `held_out` names one.

        Raises:
            FileNotFoundError, OSError, ValueError: nothing is there, or not what the options ask for.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CaptionOptions(LabelOptions):
    """Options of sources whose items may have captions. An item without its label counts as broken.

    Attributes:
        captions: null, or each item's caption is the condition `text`: "ids", by characters; "vectors", as the frozen encoder in
            `text_encoder` writes it. An empty caption is no condition.
        caption_length: characters, or tokens of the text encoder, after which captions are cut.
        text_encoder: a folder with a model of transformers and its tokenizer.

    Raises:
        ValueError: `captions` is another word, or only one of captions="vectors" and `text_encoder` is given.
    """

    captions: Literal["ids", "vectors"] | None = None
    caption_length: PositiveInt = 128
    text_encoder: LocalPath | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions == "vectors" and self.text_encoder is None:
            raise ValueError("data.captions=vectors needs the folder of a frozen text encoder: data.text_encoder=FOLDER")
        if self.captions != "vectors" and self.text_encoder is not None:
            raise ValueError(f"data.text_encoder={self.text_encoder} encodes captions, and none are asked of it: set data.captions=vectors")

    def pair(self, place: Any, list_items: Callable[[Any, bool | Sequence[str] | None], FileIndex]) -> Found:
        """Lists the items of a place, and those of the second one where `held_out` names one.

        Args:
            place: where the items are.
            list_items: (place, classes) -> its index.
        """
        index, held_out = list_items(place, self.classes), self.held_out
        if not isinstance(held_out, (int, float)):
            wanted = False if index.labels is None else True if self.classes in (None, True) else self.classes
            held_out = list_items(held_out, wanted)
        names = None if self.classes is None or isinstance(self.classes, bool) else [str(name) for name in self.classes]
        encoder = None if self.text_encoder is None else TextEncoder(self.text_encoder)
        return Found(index, held_out, names, self.caption_length, encoder)


@dataclass(frozen=True)
class MediumOptions(CheckedDataclass):
    """Options of every media type.

    Attributes:
        max_broken: largest share of unreadable items; a larger one stops the run, a single item only where it is 0.
        split_seed: which items are held out, where `held_out` is a share.
        in_memory: whether all items are decoded once, at the start, and kept.
    """

    max_broken: Fraction = 0.01
    split_seed: NonNegativeInt = 0
    in_memory: bool = False


def refuse_address(place: Any, media_type: MediaType) -> None:
    """Raises ValueError where a folder or table is a url: its single files would each be a request at the start, and one in every epoch."""
    if "://" in os.fspath(place):
        raise ValueError(
            f"{place} is an address, and a folder or table of this machine is expected: pack the {media_type.many} into tar files, which "
            f"data={'sound_' if media_type.one == 'sound' else ''}shards reads from there"
        )


def divide(options: Mapping[str, Any], *kinds: type) -> list[Any]:
    """Sorts the options of a constructor.

    Args:
        options: by name.
        kinds: dataclasses, each of which declares some of them.

    Returns:
        An instance of each kind.

    Raises:
        TypeError: an option that no kind declares.
    """
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    unknown = options.keys() - set().union(*names)
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(set().union(*names)))}")
    return [kind(**{key: value for key, value in options.items() if key in own}) for kind, own in zip(kinds, names)]
