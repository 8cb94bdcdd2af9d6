"""The index of a webdataset shard: where in the tar file each item's image or sound lies, how large it is, and the item's small members.

Made by one pass over the headers (and the items' own headers), kept as JSON in a folder of indices under a name that changes when
the shard does. A shard that is cut short is indexed up to the cut, and the index says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from gentok.atomic import whole_file
from gentok.data.file_index import MediaType
from gentok.data.names import Unused, printable
from gentok.data.window import window

__all__ = ["index_shard", "open_shard", "is_url"]

FORMAT = 3
_SMALL = 1 << 20
"""Labels, fields and captions longer than this are no labels, fields or captions."""
_BLOCK = 512


def is_url(path: str) -> bool:
    """Whether a shard is opened by fsspec, instead of by the file system.

    Args:
        path: as it was given.
    """
    return "://" in path or "::" in path


def open_shard(url: str) -> Any:
    """Opens a shard.

    Args:
        url: a path, or what fsspec opens.

    Returns:
        A binary file that can seek.

    Raises:
        OSError: it cannot be opened; a one-line error.
    """
    if not is_url(url):
        try:
            return open(url, "rb")
        except OSError as error:
            raise type(error)(f"the shard {url} cannot be opened: {error.strerror}; see data.shards and data.held_out") from error
    import fsspec

    try:
        return fsspec.open(url, "rb").open()
    except Exception as error:  # every file system has errors of its own
        raise OSError(f"the shard {url} cannot be opened: {' '.join(str(error).split()) or type(error).__name__}") from error


def index_shard(url: str, media_type: MediaType, folder: str | os.PathLike[str] | None = None, make: bool = True) -> dict[str, Any] | None:
    """The index of a shard, from the folder of indices or from the shard itself.

    Args:
        url: of the shard.
        media_type: what its items are.
        folder: where indices are kept; None: $XDG_CACHE_HOME/gentok/shards (~/.cache/gentok/shards).
        make: whether it is made where it is not kept; else None is returned then.

    Returns:
        stamp: what changes when the shard does.
        items: {key, archive (its number, where several were joined), suffix, offset, size, header: what media_type.size says, .cls, .txt,
            json} each.
        broken: {name: reason} of members that are cut, and of keys without one of the media type.
        left_out: {reason: [count, first names]} of members that are not used.
        damage: None, or what is wrong with the shard's end.

    Raises:
        OSError, ValueError: the shard cannot be read; a one-line error.
    """
    stamp = _stamp(url)
    kept = _folder(folder) / f"shard-{hashlib.sha256(json.dumps([FORMAT, media_type.many, url, stamp]).encode()).hexdigest()[:20]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads(kept.read_bytes())
        if index["format"] == FORMAT and index["stamp"] == stamp:
            return index
    if not make:
        return None
    with contextlib.closing(open_shard(url)) as file:
        index = {"format": FORMAT, "stamp": stamp, **_read(file, url, media_type)}
    with contextlib.suppress(OSError), whole_file(kept) as out:  # without it the next run makes it again
        out.write(json.dumps(index, separators=(",", ":")).encode())
    return index


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    if folder is not None:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gentok" / "shards"


def _stamp(url: str) -> list[Any]:
    """What changes when the shard does."""
    if not is_url(url):
        try:
            stat = os.stat(url)
        except OSError as error:
            raise FileNotFoundError(f"there is no shard {url}; see data.shards and data.held_out") from error
        return [os.path.abspath(url), stat.st_size, stat.st_mtime_ns]
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        return [system.ukey(path)]
    except Exception as error:  # every file system has errors of its own
        raise OSError(f"the shard {url} cannot be found: {' '.join(str(error).split()) or type(error).__name__}") from error


def _read(file: Any, url: str, media_type: MediaType) -> dict[str, Any]:
    contents, damage, place = _Contents(file, media_type), None, 0
    while damage is None:  # one archive may follow another: cat a.tar b.tar
        file.seek(place)
        try:
            archive = tarfile.TarFile(fileobj=file, errorlevel=1, encoding="utf-8")
        except tarfile.TarError as error:
            if place:
                damage = f"damaged at byte {place:,}: {error}"
                break
            reason = "it is compressed, unpack it once with gunzip" if _compressed(file) else f"{error}"
            raise ValueError(f"the shard {printable(url)} is no tar file ({reason})") from error
        try:
            while (member := archive.next()) is not None:
                archive.members = []  # a large shard's headers need not all stay in memory
                contents.add(member)
        except (tarfile.TarError, OSError, ValueError) as error:
            damage = f"cut short or damaged: {error}"
            break
        contents.end_archive()
        file.seek(archive.offset)
        if len(end := file.read(_BLOCK)) < _BLOCK or any(end):  # a whole tar ends in blocks of zeros
            damage = f"cut short or damaged at byte {archive.offset:,}"
        behind = _next_block(file)
        if behind is None:
            break
        place = behind
    contents.end_archive()
    return {"items": contents.whole, "broken": contents.broken, "left_out": contents.left_out.found, "damage": damage}


def _next_block(file: Any) -> int | None:
    """Where the next block lies that has anything but zeros in it; None: there is none."""
    while data := file.read(1 << 20):
        if any(data):
            return (file.tell() - len(data.lstrip(b"\0"))) // _BLOCK * _BLOCK
    return None


def _compressed(file: Any) -> bool:
    file.seek(0)
    return file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


class _Contents:
    """What the members of archives, one after the other, make up. Keys are those of one archive: each may count from 0."""

    def __init__(self, file: Any, media_type: MediaType):
        self.file, self.media_type, self.length = file, media_type, file.seek(0, 2)
        self.whole: list[dict[str, Any]] = []
        self.broken: dict[str, str] = {}
        self.left_out = Unused()
        self.archive, self.items, self.links = 0, dict[str, dict[str, Any]](), set[str]()

    def end_archive(self) -> None:
        whole = [item for item in self.items.values() if "offset" in item]
        if whole:
            alone = [key for key, item in self.items.items() if "offset" not in item and key not in self.links]
            self.broken |= dict.fromkeys(alone, f"it has no {self.media_type.one}")
        self.whole += whole
        self.archive, self.items, self.links = self.archive + 1, {}, set()

    def add(self, member: tarfile.TarInfo) -> None:
        if member.size < 0:
            raise ValueError(f"a member of {member.size} bytes")
        if member.isdir():
            return
        name, many = printable(member.name), self.media_type.many
        folder, base = os.path.split(name)
        stem, dot, suffix = base.partition(".")
        suffix, last = (dot + suffix).lower(), os.path.splitext(base)[1].lower()
        key = f"{folder}/{stem}" if folder else stem
        if member.islnk() or member.issym():
            self.links.add(key)
            self.left_out.add("links", name)
        elif not member.isreg() or member.issparse():
            self.left_out.add("no regular files", name)
        elif base.startswith("."):
            self.left_out.add("hidden", name)
        elif ("offset" if suffix in self.media_type.suffixes else suffix) in self.items.get(key, {}):
            self.left_out.add("further members of the same key and kind", name)
        elif suffix in (".cls", ".txt", ".json") and member.size > _SMALL:
            self.left_out.add("longer than 1 MB", name)
        elif suffix not in (*self.media_type.suffixes, ".cls", ".txt", ".json"):
            dots = last in self.media_type.suffixes
            ending = f"ending in {last}" if last else "without a suffix"
            self.left_out.add(f"{many} with a dot before their suffix, where a key ends" if dots else ending, name)
        elif member.offset_data + member.size > self.length:
            self.broken[name] = "it is cut short"
        elif suffix in self.media_type.suffixes:
            content = window(self.file, member.offset_data, member.size)
            found = {"offset": member.offset_data, "size": member.size, "header": self.media_type.size(content, name)}
            self._item(key).update(suffix=base[len(stem) :], **found)
        else:
            self.file.seek(member.offset_data)
            text = self.file.read(member.size).decode("utf-8-sig", "replace").strip()
            self._describe(self._item(key), suffix, text)

    def _item(self, key: str) -> dict[str, Any]:
        return self.items.setdefault(key, {"key": key, "archive": self.archive, "json": {}})

    def _describe(self, item: dict[str, Any], suffix: str, text: str) -> None:
        item[suffix] = text if suffix != ".json" else ""
        if suffix != ".json":
            return
        with contextlib.suppress(ValueError, RecursionError):
            fields = json.loads(text)
            if isinstance(fields, dict):
                item["json"] = {str(k): v for k, v in fields.items() if isinstance(v, (str, int, float))}
