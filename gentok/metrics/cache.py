"""What is dear to compute from data and always the same (a judge's weights, features of real images) is kept in one folder, by its key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

__all__ = ["cached", "keep"]


def _path(name: str, folder: str | os.PathLike[str] | None) -> Path:
    root = Path(folder) if folder is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gentok"
    return root / f"{name}.safetensors"


def cached(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Tensor] | None:
    """The tensors that were kept under `name`; None where there are none, or where the file is damaged.

    folder: default $XDG_CACHE_HOME/gentok (~/.cache/gentok).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(_path(name, folder))
    except (OSError, SafetensorError):
        return None


def keep(name: str, tensors: Mapping[str, Tensor], folder: str | os.PathLike[str] | None = None) -> str | None:
    """Keeps tensors under `name`, whole or not at all. Returns a line where the disk does not let it: a cache is no reason to stop."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = _path(name, folder)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return f"not written: {error}"
    return None
