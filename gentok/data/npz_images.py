"""Images in npz files, as ADM's evaluation keeps them: arr_0 uint8 [n, H, W, 3], or statistics of their Inception features."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.errors import FormatError

__all__ = ["NpzImages", "npz_array", "npz_arrays"]

_LOCAL_HEADER = 30
"""Bytes of a zip member's header on disk, before its name."""


def _bad(path: Path, reason: object) -> FormatError:
    return FormatError(f"{path} is no npz file of images or of statistics, or it is damaged ({reason})")


def npz_arrays(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the arrays in an npz file.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is no npz file, or cut short.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise _bad(path, error) from error


def npz_array(path: str | os.PathLike[str], name: str) -> Any:
    """An array of an npz file; what is stored as it is, not compressed, is mapped and not read.

    Raises:
        FormatError: the file has no such array, or it is damaged.
    """
    import numpy as np
    from numpy.lib import format as npy

    path = Path(path).expanduser()
    if name not in npz_arrays(path):
        raise _bad(path, f"there is no array {name}, but {', '.join(npz_arrays(path)) or 'none'}")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            info = archive.getinfo(f"{name}.npy")
            version = npy.read_magic(member)
            shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)
            if info.compress_type == zipfile.ZIP_STORED and not fortran and not dtype.hasobject:
                with open(path, "rb") as file:
                    file.seek(info.header_offset + 26)
                    lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
                start = info.header_offset + _LOCAL_HEADER + lengths + member.tell()
                return np.memmap(path, dtype, "r", start, shape) if all(shape) else np.zeros(shape, dtype)
        with np.load(path, allow_pickle=False) as stored:
            return stored[name]
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _bad(path, error) from error


class NpzImages:
    """The images of an npz file, arr_0.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it holds no images uint8 [n, H, W, 3].
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.pixels = npz_array(path, "arr_0")
        if self.pixels.dtype != "uint8" or self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or not len(self.pixels):
            raise _bad(Path(path), f"arr_0 is {self.pixels.dtype} {list(self.pixels.shape)}, images are uint8 [n, H, W, 3]")

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: range) -> Tensor:
        """uint8 [b, 3, H, W] of consecutive images."""
        import numpy as np

        return torch.from_numpy(np.array(self.pixels[rows.start : rows.stop])).movedim(-1, 1).contiguous()
