"""What is expensive to compute from data and always the same (weights of a classifier, features of real
images), kept in files by its key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from gentok.atomic import replacing, save_tensors
from gentok.types import fingerprint

__all__ = ["cached"]


def cached(
    name: str, compute: Callable[[], dict[str, Tensor]], folder: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Tensor], str | None]:
    """Tensors from the cache, or computed and put there.

    Args:
        name: the key, which must hold everything that the tensors depend on.
        compute: makes the tensors where the cache has none, or a damaged file.
        folder: of the cache; None: $XDG_CACHE_HOME/gentok (~/.cache/gentok).

    Returns:
        The tensors on the CPU if they were read, and a line where they could not be written (None otherwise):
        a full disk stops nothing.
    """
    from safetensors import SafetensorError, safe_open

    root = Path(folder) if folder is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gentok"
    path = root / f"{name}.safetensors"
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        if (file.metadata() or {}).get("fingerprint") in (None, fingerprint(stored)):  # files of before have none
            return stored, None
    tensors = compute()
    try:
        kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
        with replacing(path) as temporary:
            save_tensors(kept, temporary, {"fingerprint": fingerprint(kept)})
    except (OSError, SafetensorError) as error:
        return tensors, f"not written: {error}"
    return tensors, None
