"""ImageFolder: your own images. A folder of image files; where all of them lie in sub-folders, those are the classes.

What becomes of files that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Annotated, Any

from gentok.data.file_index import FileIndex, FileSource, MediaType, place_of
from gentok.data.image_dataset import ImageData, ImageOptions
from gentok.data.names import SPLITS, Unused, first_few, printable
from gentok.data.source_options import Found, LabelOptions, refuse_address
from gentok.interfaces import LocalPath

__all__ = ["FolderOptions", "ImageFolder"]


@dataclass(frozen=True)
class FolderOptions(LabelOptions):
    """Options of folders. Sub-folders are the classes where all items lie in two or more of them; classes=true demands that."""

    def find(self, path: str | os.PathLike[str], media_type: MediaType) -> Found:
        """Lists the folder `path`, and the second one where `held_out` names one.

        Raises:
            FileNotFoundError: a folder is missing, or holds nothing.
            ValueError: the classes of the two folders differ, or there are none although `classes` demands them.
        """
        refuse_address(path, media_type)
        root = Path(os.path.expanduser(path))
        if not isinstance(self.held_out, (str, os.PathLike)):
            index, names = _list(root, self.classes, media_type)
            return Found(index, self.held_out, names)
        refuse_address(self.held_out, media_type)
        own = Path(os.path.expanduser(self.held_out))
        if own.is_dir() and root.is_dir() and own.samefile(root):
            raise ValueError(f"data.held_out={own} is the folder that is trained on: give another one, or a share such as 0.05")
        index, names = _list(root, self.classes, media_type, own)
        held_out, classes = _list(own, bool(names), media_type)
        foreign = [name for name in classes if name not in names]
        if foreign:
            raise ValueError(
                f"{held_out.where} has the class {foreign[0]!r}, the training folder has not; its classes are {first_few(names)}"
            )
        return Found(index, held_out, names)


class ImageFolder(ImageData, id="data/folder"):
    """The image files of a folder and of its sub-folders.

    Args:
        path: the folder.
        options: the fields of FolderOptions and ImageOptions.

    Raises:
        FileNotFoundError, ValueError: a one-line error that says what to change.
    """

    kind = "folder"

    def __init__(self, path: LocalPath | os.PathLike[str], **options: Annotated[Any, FolderOptions, ImageOptions]):
        super().__init__(path, FolderOptions, options)


def _list(root: Path, classes: bool | None, media_type: MediaType, apart: Path | None = None) -> tuple[FileIndex, tuple[str, ...]]:
    found, left_out = _find(root, media_type, apart)
    relative = [p.relative_to(root) for p in found]
    names = _class_names(root, relative, classes, media_type)
    stats = list(found.values())
    index = FileIndex(
        printable(str(root)),
        media_type,
        [printable(p.as_posix()) for p in relative],
        FileSource(list(found)),
        [(s.st_size, s.st_mtime_ns) for s in stats],
        [printable(p.parts[0]) for p in relative] if names else None,
        places=[place_of(path, stat) for path, stat in found.items()],
        left_out=left_out,
    )
    return index, names


def _find(root: Path, media_type: MediaType, apart: Path | None) -> tuple[dict[Path, os.stat_result], Unused]:
    """The files, in the order of their names, those of a folder before its sub-folders; and why others are left out.

    Links are followed; every folder and every file is taken once, under its own name where that lies inside `root`. The folder `apart`
    is not.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {printable(str(root))}; give the folder that holds your {media_type.many}: data.path=FOLDER"
        )
    found: dict[Path, os.stat_result] = {}
    left_out = Unused()
    seen: set[tuple[Any, ...]] = set()
    folders, links = [root], deque[Path]()
    other = apart.stat() if apart is not None and apart.is_dir() else None

    def take(path: Path) -> str | None:
        """Why the file or folder is left out."""
        if path.name.startswith(".") and path != root:
            return "hidden"
        try:
            stat = path.stat()
            if other is not None and os.path.samestat(stat, other):
                return "the folder that is held out"
            place = place_of(path, stat)
            if S_ISDIR(stat.st_mode) and place not in seen:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
                if not entries and path.name.lower().endswith(media_type.suffixes):
                    return f"empty folders named as {media_type.many} are"
                for entry in entries:
                    if entry.is_symlink():
                        links.appendleft(path / entry.name)
                    else:
                        folders.append(path / entry.name)
        except FileNotFoundError:
            return "links to nothing"
        except OSError as error:
            return f"that cannot be opened ({error.strerror})"
        if not S_ISDIR(stat.st_mode):
            if not path.name.lower().endswith(media_type.suffixes):
                return f"ending in {path.suffix.lower()}" if path.suffix else "without a suffix"
            if not S_ISREG(stat.st_mode):
                return "no regular files"
        if place in seen:
            return "links to what is listed already"
        seen.add(place)
        if not S_ISDIR(stat.st_mode):
            found[path] = stat
        return None

    while folders or links:
        path = folders.pop() if folders else links.popleft()  # links wait until all that they may lead to is listed
        reason = take(path)
        if reason:
            left_out.add(reason, printable(str(path)))
    if not found:
        there = f"; not used: {left_out}" if left_out.count else ""
        raise FileNotFoundError(
            f"{printable(str(root))} holds no {media_type.many}; files ending in {first_few(media_type.suffixes)} are read{there}"
        )
    return {path: found[path] for path in sorted(found, key=_order)}, left_out


def _order(path: Path) -> list[tuple[bool, str]]:
    *folders, name = path.parts
    return [*((True, folder) for folder in folders), (False, name)]


def _class_names(root: Path, relative: list[Path], classes: bool | None, media_type: MediaType) -> tuple[str, ...]:
    """Sub-folders in the order of their names, () for an unconditional set."""
    if classes is False:
        return ()
    beside = sum(len(p.parts) == 1 for p in relative)
    names = sorted({printable(p.parts[0]) for p in relative if len(p.parts) > 1})
    deep = any(len(p.parts) > 2 for p in relative)
    if classes is None and beside == 0 and len(names) > 1 - deep and all(name.lower() in SPLITS for name in names):
        first, *others = sorted(names, key=lambda name: SPLITS.index(name.lower()))
        also = f" data.held_out={root / others[0]}" if others else ""
        raise ValueError(
            f"{root} has the sub-folders {', '.join(names)}, which look like splits and not like classes: set data.path={root / first}"
            f"{also}; or data.classes=true where they are classes, data.classes=false where they mean nothing"
        )
    if beside == 0 and (len(names) > 1 or classes):
        return tuple(names)
    if classes or (classes is None and beside and len(names) > 1):
        raise ValueError(
            f"{root} has {beside} {media_type.many} beside its {len(names)} sub-folders: move them into one of those, "
            "or ignore the sub-folders with data.classes=false"
        )
    return ()
