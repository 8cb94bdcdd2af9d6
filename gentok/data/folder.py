"""ImageFolder: your own pictures. A folder of image files; where all of them lie in sub-folders, those are the classes.

At the start only headers are read (cheap); files are decoded batch by batch, in the loader's workers. A file that cannot be read is
skipped, counted and listed; in a batch its place is taken by the next readable one (`Batch.index` says which), so that every process
keeps its batch size. More than a share `max_broken` of such files stops the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gentok.data.pictures import read_picture
from gentok.data.sets import locate
from gentok.tokens import Batch, Class, ClassSpec, Condition, ConditionSpec, fingerprint

__all__ = ["ImageFolder", "SUFFIXES"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_LISTED = 5
_log = logging.getLogger("gentok.data")


class ImageFolder:
    """media_shape (channels, H, W); train and held_out over the files of `path`, sub-folders included.

    size: side or [height, width] of what the model sees; null: the pictures' own size, which must then be one and the same.
    resize: "crop" scales until the shorter side fits and cuts around the centre; "none" demands pictures of exactly `size`.
    channels: 3 (RGB) or 1 (grey). held_out: the share of the pictures that is held out (of each class; chosen by file name, so that new
    files leave the others where they are), or the path of a second folder. classes: null takes sub-folders as classes where all pictures
    lie in two or more of them; true demands that, false ignores them. max_broken: largest share of unreadable files.
    Raises FileNotFoundError or ValueError with a line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | Sequence[int] | None = None,
        channels: int = 3,
        resize: str = "crop",
        held_out: float | str = 0.05,
        classes: bool | None = None,
        max_broken: float = 0.01,
        split_seed: int = 0,
    ):
        if resize not in ("crop", "none"):
            raise ValueError(f"data.resize={resize!r}: 'crop' or 'none'")
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels}: 1 (grey) or 3 (RGB)")
        second = isinstance(held_out, (str, os.PathLike))
        if not second and not 0 < held_out < 1:
            raise ValueError(f"data.held_out={held_out}: a share between 0 and 1, or the path of a second folder")
        root = Path(path).expanduser()
        files = _find(root)
        names = _class_names(root, files, classes)
        if second:
            other = Path(held_out).expanduser()
            parts = {"train": (root, files), "held_out": (other, _find(other))}
        else:
            train, kept = _split(root, files, names, float(held_out), split_seed)
            parts = {"train": (root, train), "held_out": (root, kept)}
        readable, sizes = {}, Counter()
        for name, (base, paths) in parts.items():
            shapes = _headers(paths, base, max_broken)
            readable[name] = (base, list(shapes))
            sizes.update(shapes.values())
            if not shapes:
                raise ValueError(
                    f"no picture is left for {name} ({root} has {len(files)}): add some, or name a second folder: data.held_out=FOLDER"
                )
        height, width = _common_size(sizes, size, resize, root)
        self.media_shape = (channels, height, width)
        self.condition_spec = ConditionSpec((("class", ClassSpec(names)),)) if names else ConditionSpec()
        self.train, self.held_out = (
            PictureSet(paths, base, names, self.media_shape, name, max_broken) for name, (base, paths) in readable.items()
        )


class PictureSet:
    """The pictures of one split; decoded when asked for."""

    def __init__(
        self, paths: Sequence[Path], root: Path, names: tuple[str, ...], media_shape: tuple[int, int, int], split: str, max_broken: float
    ):
        self.paths, self.media_shape, self.max_broken = [str(p) for p in paths], media_shape, max_broken
        self.condition_spec = ConditionSpec((("class", ClassSpec(names)),)) if names else ConditionSpec()
        relative = [p.relative_to(root) for p in paths]
        foreign = sorted({p.parts[0] for p in relative if names and p.parts[0] not in names})
        if foreign:
            raise ValueError(f"{root} has the class {foreign[0]!r}, the training folder has not; its classes are {', '.join(names[:12])}")
        self.labels = torch.tensor([names.index(p.parts[0]) for p in relative], dtype=torch.int64) if names else None
        stats = [(p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
        content = fingerprint([str(p) for p in relative], stats, media_shape)
        self.description = {"data": "folder", "path": str(root), "split": split, "items": len(paths), "content": content}
        # shared memory: what one loader worker finds broken, the others and the main process know
        self._broken = torch.zeros(len(paths), dtype=torch.uint8).share_memory_() if paths else torch.zeros(0, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def broken(self) -> list[str]:
        """The files that turned out to be unreadable so far."""
        return [self.paths[i] for i in self._broken.nonzero()[:, 0].tolist()]

    def _read(self, i: int) -> tuple[int, torch.Tensor]:
        """The first readable item at or behind i."""
        channels, height, width = self.media_shape
        for j in range(i, i + len(self)):
            j %= len(self)
            if self._broken[j]:
                continue
            try:
                return j, read_picture(self.paths[j], channels, (height, width))
            except (ValueError, OSError) as error:
                self._broken[j] = 1
                _log.warning("skipped: %s", error)
                _stop_if_too_many(self.broken, len(self), self.max_broken)
        raise ValueError(f"none of the {len(self)} pictures beside {self.paths[i]} can be read")

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        index, _ = locate(draws, len(self))
        rows = [self._read(i) for i in index.tolist()]
        index = torch.tensor([j for j, _ in rows], dtype=torch.int64)
        parts = {} if self.labels is None else {"class": Class(self.labels[index])}
        return Batch(torch.stack([media for _, media in rows]), index, Condition(parts))

    def __getitem__(self, draw: int) -> Batch:
        return self.__getitems__([draw])


def _find(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give the folder that holds your pictures: data.path=FOLDER")
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not found:
        raise FileNotFoundError(f"{root} holds no pictures; files ending in {', '.join(SUFFIXES)} are read")
    return found


def _class_names(root: Path, files: list[Path], classes: bool | None) -> tuple[str, ...]:
    """Sub-folders in the order of their names, () for an unconditional set."""
    if classes is False:
        return ()
    beside = sum(len(p.relative_to(root).parts) == 1 for p in files)
    names = sorted({p.relative_to(root).parts[0] for p in files if len(p.relative_to(root).parts) > 1})
    if beside == 0 and (len(names) > 1 or classes):
        return tuple(names)
    if classes or (classes is None and beside and len(names) > 1):
        raise ValueError(
            f"{root} has {beside} pictures beside its {len(names)} sub-folders: move them into one of those, "
            "or ignore the sub-folders with data.classes=false"
        )
    return ()


def _split(root: Path, files: list[Path], names: tuple[str, ...], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    def order(p: Path) -> str:
        return hashlib.sha256(f"{seed}/{p.relative_to(root).as_posix()}".encode()).hexdigest()

    kept: set[Path] = set()
    for name in names or ("",):
        own = sorted((p for p in files if not names or p.relative_to(root).parts[0] == name), key=order)
        count = min(len(own) - 1, max(1, round(share * len(own))))
        kept.update(own[:count])
    return [p for p in files if p not in kept], [p for p in files if p in kept]


def _headers(paths: list[Path], root: Path, max_broken: float) -> dict[Path, tuple[int, int]]:
    """path -> (height, width), upright, of every file whose header can be read."""
    from PIL import Image

    sizes: dict[Path, tuple[int, int]] = {}
    broken: list[str] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                stored = "exif" in image.info or image.format == "TIFF"  # without this, a PNG would be decoded to look for it
                turned = stored and image.getexif().get(0x0112, 1) >= 5  # orientation: stored on its side
                sizes[path] = (image.width, image.height) if turned else (image.height, image.width)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(str(path))
    if broken:
        _log.warning("%d of %d files in %s cannot be read and are skipped: %s", len(broken), len(paths), root, _some(broken))
        _stop_if_too_many(broken, len(paths), max_broken)
    return sizes


def _stop_if_too_many(broken: list[str], count: int, max_broken: float) -> None:
    if len(broken) > max_broken * count:
        raise ValueError(
            f"{len(broken)} of {count} pictures cannot be read, more than the share data.max_broken={max_broken:g} allows: {_some(broken)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _common_size(sizes: Counter[Any], size: int | Sequence[int] | None, resize: str, root: Path) -> tuple[int, int]:
    wanted = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if wanted is not None and (len(wanted) != 2 or min(wanted) < 1):
        raise ValueError(f"data.size={size}: a side in pixels, or [height, width]")
    if wanted is not None and resize == "crop":
        return wanted
    shown = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
    if wanted is None and len(sizes) > 1:
        raise ValueError(f"the pictures in {root} have {len(sizes)} sizes: {shown}; say which one the model shall see: data.size=SIDE")
    if wanted is not None and set(sizes) != {wanted}:
        raise ValueError(f"data.resize=none demands pictures of {wanted[1]}x{wanted[0]}; {root} has {shown}; use data.resize=crop")
    return wanted or next(iter(sizes))
