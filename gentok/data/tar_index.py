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

__all__ = ["index_shard", "open_shard", "is_url"]

FORMAT = 2
_SMALL = 1 << 20
"""Labels, fields and captions longer than this are no labels, fields or captions."""
_BLOCK = 512


def is_url(path: str) -> bool:
    """Whether fsspec is to open it."""
    return "://" in path or "::" in path


def open_shard(url: str) -> Any:
    """A binary file that can seek. Raises OSError with a line."""
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
    """{stamp, items, lost, damage, other} of a shard, from the folder of indices or, if `make`, from the shard.

    items: {key, suffix, offset, size, header: what media_type.header says or None (it cannot be read), cls, txt, json} each.
    lost: names of members that are cut, and keys without one of the media_type. damage: None, or what is wrong with the shard's end.
    other: suffixes of members of no such kind. Raises OSError or ValueError with a line.
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
    length = file.seek(0, 2)
    file.seek(0)
    try:
        archive = tarfile.TarFile(fileobj=file, errorlevel=1)
    except tarfile.TarError as error:
        reason = "it is compressed, unpack it once with gunzip" if _compressed(file) else f"{error}"
        raise ValueError(f"the shard {url} is no tar file ({reason})") from error
    items: dict[str, dict[str, Any]] = {}
    lost: list[str] = []
    other: set[str] = set()
    damage = None
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # a large shard's headers need not all stay in memory
            if member.isreg() and not os.path.basename(member.name).startswith("."):
                if member.offset_data + member.size > length:
                    lost.append(member.name)
                else:
                    _take(file, member, items, other, media_type)
    except (tarfile.TarError, OSError, ValueError) as error:
        damage = f"cut short or damaged: {error}"
    file.seek(archive.offset)
    if damage is None and (len(end := file.read(_BLOCK)) < _BLOCK or any(end)):  # a whole tar ends in blocks of zeros
        damage = f"cut short or damaged at byte {archive.offset:,}"
    whole = [item for item in items.values() if "offset" in item]
    lost += [item["key"] for item in items.values() if "offset" not in item] if whole else []
    return {"items": whole, "lost": lost, "damage": damage, "other": sorted(other)}


def _compressed(file: Any) -> bool:
    file.seek(0)
    return file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


def _take(file: Any, member: tarfile.TarInfo, items: dict[str, dict[str, Any]], other: set[str], media_type: MediaType) -> None:
    folder, base = os.path.split(member.name)
    stem, dot, suffix = base.partition(".")
    suffix = (dot + suffix).lower()
    key = f"{folder}/{stem}" if folder else stem
    if suffix in media_type.suffixes:
        item = items.setdefault(key, {"key": key, "json": {}})
        if "offset" not in item:
            found = _header(file, member, media_type)
            item.update(suffix=dot + base.partition(".")[2], offset=member.offset_data, size=member.size, header=found)
        return
    other.add(suffix or "no suffix")
    if suffix not in (".cls", ".txt", ".json") or member.size > _SMALL:
        return
    item = items.setdefault(key, {"key": key, "json": {}})
    file.seek(member.offset_data)
    text = file.read(member.size).decode("utf-8", "replace").strip()
    if suffix != ".json":
        item[suffix[1:]] = text
        return
    with contextlib.suppress(ValueError):
        fields = json.loads(text)
        if isinstance(fields, dict):
            item["json"] = {str(k): v for k, v in fields.items() if isinstance(v, (str, int, float))}


def _header(file: Any, member: tarfile.TarInfo, media_type: MediaType) -> list[int] | None:
    """From the first bytes where they suffice."""
    for length in (member.size,) if media_type.head is None else (media_type.head, member.size):
        file.seek(member.offset_data)
        with contextlib.suppress(ValueError):
            return list(media_type.header(file.read(min(length, member.size)), member.name))
    return None
