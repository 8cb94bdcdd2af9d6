"""Shards: images in tar files of the webdataset convention, read map-style: any item at any time, by its place in the file.

Members of one item share a key, what stands before the first dot: KEY.jpg, with KEY.cls (a class, by number or name), KEY.json (fields) and
KEY.txt (a caption). One pass over a shard's headers makes its index (gentok.data.tar_index), which is kept. From then on items are
read by offset, so that shuffling, shares of processes and workers, and a resumed position are those of every other set.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from gentok.data.file_index import FileIndex, MediaType, place_of
from gentok.data.image_dataset import ImageData, ImageOptions
from gentok.data.names import Unused, encodable, first_few, printable
from gentok.data.shard_source import ShardSource
from gentok.data.source_options import CaptionOptions, Found
from gentok.data.tar_index import index_shard, is_url
from gentok.errors import counted
from gentok.interfaces import LocalPath

__all__ = ["ShardOptions", "ShardSource", "Shards", "expand_braces"]

@dataclass(frozen=True)
class ShardOptions(CaptionOptions):
    """Options of shards; `held_out` may name other ones. What lies behind the end of a shard that is cut short counts as broken.

    Attributes:
        label: which member, or field of KEY.json, is the class: cls, json.NAME; null: cls where there is one.
        caption: which one is the caption: txt, json.NAME.
        index: the folder where indices are kept; null: $XDG_CACHE_HOME/gentok (~/.cache/gentok).
    """

    label: str | None = None
    caption: str = "txt"
    index: LocalPath | None = None

    def find(self, shards: str | Sequence[str], media_type: MediaType) -> Found:
        """Lists the items of `shards`, and those of other ones where `held_out` names such.

        Raises:
            FileNotFoundError, OSError: a shard is missing, or cannot be read.
            ValueError: there are no items, or they lack what the options ask for.
        """
        caption = self.caption if self.captions else None
        return self.pair(shards, lambda place, classes: _list(place, media_type, self.label, classes, caption, self.index))


class Shards(ImageData, id="data/shards"):
    """The images of tar files.

    Args:
        shards: a path, an fsspec url (s3://..., https://...; filecache::s3://... keeps a copy), or a list of such; braces are expanded:
            {000..004}, {a,b}.
        options: the fields of ShardOptions and ImageOptions.

    Raises:
        FileNotFoundError, OSError, ValueError: a one-line error that says what to change.
    """

    kind = "shards"

    def __init__(self, shards: LocalPath | Sequence[LocalPath], **options: Annotated[Any, ShardOptions, ImageOptions]):
        super().__init__(shards, ShardOptions, options)


def expand_braces(pattern: str) -> list[str]:
    """Expands braces as a shell does.

    Args:
        pattern: such as 'a-{000..002}.tar' or '{x,y}.tar'; numbers keep their zeros.

    Returns:
        a-000.tar, a-001.tar, a-002.tar; of several braces all combinations, the last one fastest.

    Raises:
        ValueError: a brace that is neither a range nor a list.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if i % 2 == 0 else _choices(piece, pattern) for i, piece in enumerate(pieces)]
    if any("{" in piece or "}" in piece for piece in pieces):
        raise ValueError(f"data.shards={pattern}: the braces do not pair; expected such as train-{{000..004}}.tar or {{a,b}}.tar")
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first:
            raise ValueError(f"data.shards={pattern}: {{{inside}}} counts downwards; the smaller number comes first")
        return [str(n).zfill(len(bounds[1])) for n in range(first, last + 1)]
    if "," not in inside:
        raise ValueError(f"data.shards={pattern}: {{{inside}}} is neither a range such as {{000..004}} nor a list such as {{a,b}}")
    return inside.split(",")


def _list(
    shards: str | Sequence[str],
    media_type: MediaType,
    label: str | None,
    classes: bool | Sequence[str] | None,
    caption: str | None,
    folder: str | None,
) -> FileIndex:
    import numpy as np

    given = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
    urls = [url for word in given for url in expand_braces(os.fspath(word))]
    if not urls:
        raise ValueError("data.shards names no shard: give tar files, such as data.shards=train-{000..004}.tar")
    left_out = Unused()
    marks = _once([url if is_url(url) else os.path.expanduser(url) for url in urls], left_out)
    urls = list(marks)
    where = printable(str(given[0])) if len(given) == 1 else f"{printable(str(given[0]))} and {len(given) - 1} more"
    indices = index_shards(urls, folder, media_type)
    items = [(n, item) for n, index in enumerate(indices) for item in index["items"]]
    full = [len(index["items"]) for index in indices if not index["damage"]]
    usual = sorted(full)[len(full) // 2] if full else 0
    broken: dict[str, str] = {}
    broken_count = 0
    for url, index in zip(map(printable, urls), indices):
        left_out.update(index["left_out"], f"{url}:")
        broken |= {f"{url}:{name}": reason for name, reason in index["broken"].items()}
        broken_count += len(index["broken"])
        if index["damage"]:  # how many items are gone nobody knows; shards of a set are about equally long
            gone = max(0, usual - len(index["items"]) - len(index["broken"]))
            if gone or "it is cut short" not in index["broken"].values():
                broken[url] = f"{index['damage']}; {counted(len(index['items']), 'item')} of it can be read"
                broken_count += max(1, gone)
    if not items:
        kinds = ", ".join(f"KEY{suffix}" for suffix in media_type.suffixes[:2])
        raise ValueError(f"{where} holds no {media_type.many} ({kinds}, ...); its members are {left_out if left_out.count else 'none'}")
    labels = None
    if classes is not False:
        labels = _values(items, label or "cls", where, "label", demanded=bool(label) or classes is not None, many=media_type.many)
    captions = _values(items, caption, where, "caption", demanded=True, many=media_type.many) if caption else None
    stamps = [":".join(map(str, index["stamp"])) for index in indices]
    source = ShardSource(
        urls,
        np.array([n for n, _ in items], np.int32),
        np.array([item["offset"] for _, item in items], np.int64),
        np.array([item["size"] for _, item in items], np.int64),
        np.array([(item["key"] + item["suffix"]).encode() for _, item in items]),
    )
    bases = [printable(os.path.basename(url)) for url in urls]
    names = [f"{bases[n]}/{item['key']}" + (f"#{item['archive']}" if item["archive"] else "") for n, item in items]
    sizes = [item["header"] if isinstance(item["header"], str) else tuple(item["header"]) for _, item in items]
    places = list(marks.values())
    return FileIndex(
        where, media_type, names, source, [f"{stamps[n]}:{item['offset']}" for n, item in items], labels,
        None if captions is None else [text or "" for text in captions], sizes,
        [(places[n], item["offset"]) for n, item in items], broken, broken_count, left_out,
    )  # fmt: skip


def _once(urls: Sequence[str], left_out: Unused) -> dict[str, Any]:
    """{url: what is equal for the same shard}, of shards that are named twice only the first."""
    out: dict[str, Any] = {}
    for url in urls:
        try:
            stat = None if is_url(url) else os.stat(url)
        except OSError:
            stat = None  # which the index says better
        mark = url if stat is None else place_of(url, stat)
        if mark in out.values():
            left_out.add("shards that are named twice", printable(url))
        else:
            out[url] = mark
    return out


def index_shards(urls: Sequence[str], folder: str | None, media_type: MediaType) -> list[dict[str, Any]]:
    """The index of each shard, with a progress bar where they have to be made.

    Args:
        urls: of the shards.
        folder: where indices are kept; None: the default of gentok.data.tar_index.
        media_type: what the items are.
    """
    from gentok.data.progress import progress

    kept = [index_shard(url, media_type, folder, make=False) for url in urls]
    missing = [i for i, index in enumerate(kept) if index is None]
    with progress("indexing", len(missing), "shards", bool(missing)) as advance:
        for i in missing:
            kept[i] = index_shard(urls[i], media_type, folder)
            advance(1)
    return [index for index in kept if index is not None]


def _values(
    items: list[tuple[int, dict[str, Any]]], field: str, where: str, what: str, demanded: bool, many: str
) -> list[str | None] | None:
    """Each item's `field`, None where it has none; None where no item has it and it is not demanded."""
    member, _, key = field.partition(".")
    if (member == "json") != bool(key) or member not in ("cls", "txt", "json"):
        raise ValueError(f"data.{what}={field}: cls, txt, or a field of the json member such as json.label")
    values = [item["json"].get(key) if key else item.get(f".{member}") for _, item in items]
    if any(value is not None for value in values):
        return [None if value is None else encodable(str(value)).strip() or None for value in values]
    if not demanded:
        return None
    there = {name for _, item in items for name in ("cls", "txt") if item.get(f".{name}") is not None}
    there |= {f"json.{name}" for _, item in items for name in item["json"]}
    raise ValueError(f"the items of {where} have no {what} {field!r}; they have: {first_few(sorted(there)) or f'{many} alone'}")
