"""Where a model is: a bundle folder, a training checkpoint, a model that ships with gentok, a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from gentok.bundle.files import last_good, neighbours
from gentok.bundle.hub import HubAddress, download

__all__ = ["ZOO", "find", "in_zoo"]

ZOO = tuple(Path(__file__).resolve().parents[n] / where for n, where in ((1, "zoo"), (2, "docs/zoo")))
"""Where the models that ship with gentok are: inside an installed wheel, and in a checkout."""


def in_zoo(name: str) -> Path | None:
    """The folder of the model `name` that ships with gentok; None where there is none."""
    plain = Path(name).name == name
    return next((folder / name for folder in ZOO if plain and (folder / name / "bundle.json").is_file()), None)


def find(path: str | os.PathLike[str]) -> Path:
    """The folder or file that `path` names; of a model on the hub, the folder in the cache that it was downloaded into.

    Raises FileNotFoundError, saying what lies beside it; OSError where the hub cannot be reached.
    """
    if HubAddress.is_one(path):
        return download(HubAddress.parse(str(path)))
    given, path = str(path), Path(path).expanduser()
    if not path.exists() and (last_good(path) / "bundle.json").is_file():
        return last_good(path)  # a kill fell between the two renames of `save`
    if not path.exists() and (shipped := in_zoo(given)) is not None:
        return shipped
    if not path.exists():
        names = sorted(p.name for folder in ZOO if folder.is_dir() for p in folder.iterdir() if (p / "bundle.json").is_file())
        ships = f"; models that ship with gentok: {', '.join(names)}" if path.name == given and names else neighbours(path)
        on_hub = f"; on the Hugging Face Hub it would be hf://{given}" if HubAddress.is_name(given) and not path.parent.exists() else ""
        raise FileNotFoundError(f"there is no bundle or checkpoint at {path}{ships}{on_hub}")
    if path.is_dir() and not (path / "bundle.json").is_file():
        found = sorted(str(p.parent) for p in path.glob("*/bundle.json"))
        raise FileNotFoundError(f"{path} is a folder without bundle.json" + (f"; bundles inside it: {', '.join(found)}" if found else ""))
    return path
