"""ImageFolder: your own images. A folder of image files; where all of them lie in sub-folders, those are the classes.

What becomes of files that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gentok.data.file_index import FileIndex, FileSource, MediaType
from gentok.data.image_dataset import ImageData, ImageOptions
from gentok.data.names import first_few
from gentok.data.source_options import Found, LabelOptions
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
        index, names = _list(Path(path).expanduser(), self.classes, media_type)
        held_out = self.held_out
        if isinstance(held_out, (str, os.PathLike)):
            held_out, own = _list(Path(held_out).expanduser(), bool(names), media_type)
            foreign = [name for name in own if name not in names]
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


def _list(root: Path, classes: bool | None, media_type: MediaType) -> tuple[FileIndex, tuple[str, ...]]:
    files = _find(root, media_type)
    relative = [p.relative_to(root) for p in files]
    names = _class_names(root, relative, classes, media_type)
    stats = [p.stat() for p in files]
    index = FileIndex(
        str(root),
        media_type,
        [p.as_posix() for p in relative],
        FileSource(files),
        [(s.st_size, s.st_mtime_ns) for s in stats],
        [p.parts[0] for p in relative] if names else None,
    )
    return index, names


def _find(root: Path, media_type: MediaType) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give the folder that holds your {media_type.many}: data.path=FOLDER")
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if n.lower().endswith(media_type.suffixes) and not n.startswith(".")]
    found = [p for p in found if p.is_file()]  # a link may lead nowhere
    if not found:
        raise FileNotFoundError(f"{root} holds no {media_type.many}; files ending in {first_few(media_type.suffixes)} are read")
    return found


def _class_names(root: Path, relative: list[Path], classes: bool | None, media_type: MediaType) -> tuple[str, ...]:
    """Sub-folders in the order of their names, () for an unconditional set."""
    if classes is False:
        return ()
    beside = sum(len(p.parts) == 1 for p in relative)
    names = sorted({p.parts[0] for p in relative if len(p.parts) > 1})
    if beside == 0 and (len(names) > 1 or classes):
        return tuple(names)
    if classes or (classes is None and beside and len(names) > 1):
        raise ValueError(
            f"{root} has {beside} {media_type.many} beside its {len(names)} sub-folders: move them into one of those, "
            "or ignore the sub-folders with data.classes=false"
        )
    return ()
