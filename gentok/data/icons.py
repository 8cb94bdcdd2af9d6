"""Icons: filled SVG icons with the words of their files' names, of a folder, a zip file, or an installed package.

All files are read at the start, as outlines (gentok/drawings/svg.py). A batch has their pictures as media, and as conditions the words,
`text`, as symbols, and the outlines themselves, `outline`, for tokenizer=icon. What becomes of files that cannot be read: see
gentok.data.indexed_dataset; icons of more than `longest` ids are left out, counted and listed.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from gentok.data.datasets import locate
from gentok.data.file_index import FileIndex, MediaType, split
from gentok.data.folder import FolderOptions
from gentok.data.image_files import to_media
from gentok.data.indexed_dataset import IndexedDataset
from gentok.data.labels import Conditions, spec_of
from gentok.data.names import Unused, printable
from gentok.data.source_options import Found, divide
from gentok.drawings.outlines import LINE, MOVE, SHAPE, STEPS, Outline, outline_spec, packed, rasterise, to_ids
from gentok.drawings.svg import SVG_SUFFIXES, read_svg
from gentok.interfaces import LocalPath, MediaData
from gentok.settings import CheckedDataclass, Fraction, NonNegativeInt, PositiveInt
from gentok.types import Batch, Condition, ConditionSpec

__all__ = ["IconFiles", "IconOptions", "Icons", "ids_of", "words"]

_log = logging.getLogger("gentok.data")


def words(name: str) -> str:
    """The words of a file's name: "a/arrow-left_bold.svg" -> "arrow left bold"."""
    return " ".join(re.split(r"[^0-9a-z]+", Path(name).stem.lower())).strip()


def ids_of(outline: Outline) -> int:
    """How many ids tokenizer=icon needs at most: 3 for a move, 2 for a line, 4 for a curve, 1 for the end."""
    return 1 + sum(3 if kind in (SHAPE, MOVE) else 2 if kind == LINE else 4 for kind, _ in outline)


def _size(source: Any, name: str) -> tuple[int, ...]:
    return (ids_of(read_svg(source, name)),)


ICONS = MediaType("icon", "icons", SVG_SUFFIXES, _size)
"""Their size is how many ids they need at most."""


@dataclass(frozen=True)
class IconFiles(FolderOptions):
    """Where SVG files are.

    Attributes:
        classes: true demands sub-folders as classes; null takes them where all files lie in such.
        package_set: of the package mkdocs-material, where no place is given.
    """

    classes: bool | None = False
    package_set: Literal["material", "octicons"] = "material"

    def find(self, path: Any, media_type: MediaType) -> Found:
        place = self._installed() if path is None else Path(os.path.expanduser(path))
        other = self.held_out if isinstance(self.held_out, (str, os.PathLike)) else None
        if not zipfile.is_zipfile(place) and (other is None or not zipfile.is_zipfile(Path(os.path.expanduser(other)))):
            return super().find(place, media_type)
        if self.classes:
            raise ValueError("data.classes=true: of a zip file no classes are read; unpack it, or set data.classes=false")
        found = [_listed(Path(os.path.expanduser(p)), media_type) for p in (place, other) if p is not None]
        return Found(found[0], found[1] if other is not None else self.held_out, ())  # type: ignore[arg-type]

    def _installed(self) -> Path:
        spec = find_spec("material")
        place = Path(next(iter(spec.submodule_search_locations or ()), "")) / "templates" / ".icons" / self.package_set if spec else None
        if place is None or not place.is_dir():
            raise ImportError(
                "data=icons reads the icons of the package mkdocs-material, which is not installed: pip install mkdocs-material, or name a "
                "folder or zip file of SVG files with data.path=PATH"
            )
        return place


class ZipSource:
    """Items that are files in a zip file."""

    local = True

    def __init__(self, path: Path, members: Sequence[str]):
        self.path, self.members = path, list(members)

    def __len__(self) -> int:
        return len(self.members)

    def name(self, i: int) -> str:
        return f"{printable(str(self.path))}:{printable(self.members[i])}"

    def open(self, i: int) -> bytes:
        return self.piece(i, 0, self.length(i))

    def ahead(self, rows: Sequence[int]) -> None:
        pass

    def length(self, i: int) -> int:
        with zipfile.ZipFile(self.path) as file:
            return file.getinfo(self.members[i]).file_size

    def piece(self, i: int, start: int, count: int) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as file, file.open(self.members[i]) as member:
                member.seek(start)
                return member.read(min(count, 1 << 22))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"{self.name(i)} cannot be unpacked: {error}") from error

    def select(self, rows: Sequence[int]) -> ZipSource:
        return ZipSource(self.path, [self.members[i] for i in rows])


def _listed(path: Path, media_type: MediaType) -> FileIndex:
    """What a zip file holds. Raises ValueError where it is none, FileNotFoundError where it has no icons."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip file, the other place is one: give two zip files, or two folders")
    with zipfile.ZipFile(path) as file:
        entries = [entry for entry in file.infolist() if not entry.is_dir()]
    left_out = Unused()
    for entry in entries:
        if not entry.filename.lower().endswith(media_type.suffixes):
            left_out.add(f"ending in {Path(entry.filename).suffix.lower()}", printable(entry.filename))
    found = sorted((e for e in entries if e.filename.lower().endswith(media_type.suffixes)), key=lambda e: e.filename)
    if not found:
        raise FileNotFoundError(f"{path} holds no {media_type.many}; files ending in {', '.join(media_type.suffixes)} are read")
    names = [printable(entry.filename) for entry in found]
    stamps = [(entry.file_size, entry.CRC) for entry in found]
    return FileIndex(str(path), media_type, names, ZipSource(path, [entry.filename for entry in found]), stamps, left_out=left_out)


@dataclass(frozen=True)
class IconOptions(CheckedDataclass):
    """What becomes of icons.

    Attributes:
        size: pixels per side of the pictures.
        longest: ids of tokenizer=icon (`ids_of`) beyond which an icon is left out.
        caption_length: words after which a name is cut; words that no training icon has are left out.
        max_broken: largest share of unreadable files; a larger one stops the run.
        split_seed: which icons are held out, where `held_out` is a share.
    """

    size: PositiveInt = 64
    longest: PositiveInt = 200
    caption_length: PositiveInt = 6
    max_broken: Fraction = 1.0
    split_seed: NonNegativeInt = 0


class Icons(MediaData, id="data/icons"):
    """Two sets of icons.

    Args:
        path: a folder or a zip file of SVG files; None: those of an installed package.
        options: the fields of IconFiles and IconOptions.

    Raises:
        FileNotFoundError, ImportError, ValueError: a one-line error that says what to change.
    """

    def __init__(self, path: LocalPath | os.PathLike[str] | None = None, **options: Annotated[Any, IconFiles, IconOptions]):
        finder, own = divide(options, IconFiles, IconOptions)
        read: dict[str, Outline] = {}

        def header(source: Any, name: str) -> tuple[int, ...]:  # reads the whole file, and keeps it
            read[name] = read_svg(source, name)
            return (ids_of(read[name]),)

        found: Found = finder.find(path, replace(ICONS, header=header))
        for index in (found.index, found.held_out):
            if isinstance(index, FileIndex):
                index.captions = [words(name) for name in index.names]
        parts = split(found.index, found.held_out, own.max_broken, own.split_seed)
        parts = {name: _short(replace(part, media_type=ICONS), own.longest) for name, part in parts.items()}
        self.media_shape = (1, own.size, own.size)
        spec = spec_of(parts, found.classes, own.caption_length, by_words=True)
        outlines = {name: [read[part.source.name(i)] for i in range(len(part.names))] for name, part in parts.items()}
        longest = max(len(to_ids(outline)) for some in outlines.values() for outline in some)
        self.condition_spec = ConditionSpec((*spec.parts, ("outline", outline_spec(longest))))
        self.train, self.held_out = (
            IconDataset(name, part, Conditions(spec, part), self.condition_spec, outlines[name], own) for name, part in parts.items()
        )


def _short(index: FileIndex, longest: int) -> FileIndex:
    """The icons of up to `longest` ids."""
    kept = [i for i, size in enumerate(index.known_sizes) if size[0] <= longest]
    dropped = [index.source.name(i) for i, size in enumerate(index.known_sizes) if size[0] > longest]
    if not kept:
        raise ValueError(f"all icons that were found in {index.where} have more than data.longest={longest} ids: set a larger one")
    out = index.select(kept)
    out.broken, out.broken_count, out.left_out = index.broken, index.broken_count, index.left_out
    if dropped:
        out.left_out.add(f"of more than {longest} ids", *dropped)
        _log.warning(
            "%d of %d icons in %s have more than data.longest=%d ids and are left out", len(dropped), len(dropped) + len(kept), index.where,
            longest,
        )  # fmt: skip
    return out


class IconDataset(IndexedDataset):
    """The icons of one split.

    Args:
        split, index, conditions: those of IndexedDataset; conditions without outlines.
        spec: the conditions that items have, outlines included.
        outlines: of all of them, on the grid of STEPS.
        options: what becomes of them.

    Attributes:
        outlines: as given.
        captions: the words of each.
    """

    def __init__(
        self, split: str, index: FileIndex, conditions: Conditions, spec: ConditionSpec, outlines: list[Outline], options: IconOptions
    ):  # fmt: skip
        super().__init__("icons", split, index, conditions, options.max_broken, [options.size, STEPS])
        self.media_shape, self.condition_spec = (1, options.size, options.size), spec
        self.outlines, self.captions = outlines, list(index.captions or ())
        self._longest = dict(spec.parts)["outline"].max_length  # type: ignore[union-attr]

    def decode(self, i: int, *more: Any) -> Outline:
        return self.outlines[i]

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, _ = locate(draws, len(self))
        outlines = [self.outlines[i] for i in index.tolist()]
        media = to_media(rasterise(outlines, STEPS, self.media_shape[1]))
        parts = {**self.condition(index).parts, "outline": packed([to_ids(outline) for outline in outlines], self._longest)}
        return Batch(media, index, Condition(parts))
