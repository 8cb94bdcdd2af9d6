"""ImageFolder: your own pictures. A folder of image files; where all of them lie in sub-folders, those are the classes.

What becomes of files that cannot be read: see gentok.data.indexed_dataset.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gentok.data.file_index import Files, Listing, Medium, some
from gentok.data.image_dataset import PICTURES, ImageData
from gentok.interfaces import LocalPath

__all__ = ["ImageFolder", "list_folders"]


class ImageFolder(ImageData, id="data/folder"):
    """media_shape (channels, H, W); train and held_out over the files of `path`, sub-folders included.

    size: side or [height, width] of what the model sees; null: the pictures' own size, which must then be one and the same.
    resize: "crop" scales until the shorter side fits and cuts around the centre; "none" demands pictures of exactly `size`.
    channels: 3 (RGB) or 1 (grey). held_out: the share of the pictures that is held out (of each class; chosen by file name, so that new
    files leave the others where they are), or the path of a second folder. classes: null takes sub-folders as classes where all pictures
    lie in two or more of them; true demands that, false ignores them. max_broken: largest share of unreadable files.
    in_memory: decode all pictures once and keep them, as uint8. Raises FileNotFoundError or ValueError with a line.
    """

    def __init__(
        self,
        path: LocalPath | os.PathLike[str],
        size: int | Sequence[int] | None = None,
        channels: int = 3,
        resize: str = "crop",
        held_out: float | LocalPath = 0.05,
        classes: bool | None = None,
        max_broken: float = 0.01,
        split_seed: int = 0,
        in_memory: bool = False,
    ):
        listing, held_out, names = list_folders(path, held_out, classes, PICTURES)
        super().__init__(
            "folder", listing, held_out, size=size, channels=channels, resize=resize, max_broken=max_broken, split_seed=split_seed,
            classes=names, in_memory=in_memory,
        )  # fmt: skip


def list_folders(
    path: str | os.PathLike[str], held_out: float | str | os.PathLike[str], classes: bool | None, medium: Medium
) -> tuple[Listing, Listing | float, tuple[str, ...]]:
    """The folder `path`, the second one where `held_out` names one, and the classes' names in order; () without classes.

    Raises FileNotFoundError or ValueError with a line.
    """
    listing, names = _list(Path(path).expanduser(), classes, medium)
    if isinstance(held_out, (str, os.PathLike)):
        held_out, own = _list(Path(held_out).expanduser(), bool(names), medium)
        foreign = [name for name in own if name not in names]
        if foreign:
            raise ValueError(f"{held_out.where} has the class {foreign[0]!r}, the training folder has not; its classes are {some(names)}")
    return listing, held_out, names


def _list(root: Path, classes: bool | None, medium: Medium) -> tuple[Listing, tuple[str, ...]]:
    files = _find(root, medium)
    relative = [p.relative_to(root) for p in files]
    names = _class_names(root, relative, classes, medium)
    stats = [p.stat() for p in files]
    listing = Listing(
        str(root),
        medium,
        [p.as_posix() for p in relative],
        Files(files),
        [(s.st_size, s.st_mtime_ns) for s in stats],
        [p.parts[0] for p in relative] if names else None,
    )
    return listing, names


def _find(root: Path, medium: Medium) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give the folder that holds your {medium.many}: data.path=FOLDER")
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if n.lower().endswith(medium.suffixes) and not n.startswith(".")]
    found = [p for p in found if p.is_file()]  # a link may lead nowhere
    if not found:
        raise FileNotFoundError(f"{root} holds no {medium.many}; files ending in {', '.join(medium.suffixes)} are read")
    return found


def _class_names(root: Path, relative: list[Path], classes: bool | None, medium: Medium) -> tuple[str, ...]:
    """Sub-folders in the order of their names, () for an unconditional set."""
    if classes is False:
        return ()
    beside = sum(len(p.parts) == 1 for p in relative)
    names = sorted({p.parts[0] for p in relative if len(p.parts) > 1})
    if beside == 0 and (len(names) > 1 or classes):
        return tuple(names)
    if classes or (classes is None and beside and len(names) > 1):
        raise ValueError(
            f"{root} has {beside} {medium.many} beside its {len(names)} sub-folders: move them into one of those, "
            "or ignore the sub-folders with data.classes=false"
        )
    return ()
