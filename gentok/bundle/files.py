"""Reading the files of a bundle or of a training checkpoint, with one line where they are not what they should be."""

from __future__ import annotations

import difflib
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok import __version__
from gentok.errors import FormatError

__all__ = ["FORMAT", "checksum", "last_good", "load_state", "neighbours", "read_checkpoint", "read_folder"]

FORMAT = 2
"""2: components by id, checksums. 1: components by the names in gentok/interfaces/format1.py; it is read, never written."""


def last_good(path: Path) -> Path:
    """Where the bundle of before lies between the two renames of `gentok.bundle.save`."""
    return path.with_name(f".{path.name}.last_good")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A bundle folder -> (bundle.json, the tokenizer's tensors, the generator's). Raises FileNotFoundError or FormatError with a line."""
    try:
        document = json.loads((path / "bundle.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path / 'bundle.json'} is no JSON ({error}): this is not a gentok bundle, or it was cut off") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise FormatError(f"{path / 'bundle.json'} has no format number: this is not a gentok bundle")
    if document["format"] > FORMAT:
        raise FormatError(
            f"{path} is a bundle of format {document['format']}; this gentok ({__version__}) reads up to {FORMAT}: upgrade gentok"
        )
    missing = [key for key in ("kind", "tokenizer", "condition_spec", "meta") if key not in document]
    if missing:
        raise FormatError(f"{path / 'bundle.json'} lacks {', '.join(missing)}: the bundle is damaged")
    tokenizer = _read_weights(path / "tokenizer" / "model.safetensors")
    generator = _read_weights(path / "generator" / "model.safetensors") if document["kind"] == "generator" else {}
    for name, stored in document.get("checksums", {}).items():
        if (path / name).is_file() and checksum(path / name) != stored:
            raise FormatError(f"{path / name} is not what was written there (its checksum differs): it was changed or damaged")
    return document, tokenizer, generator


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"the bundle lacks {path}")
    try:
        return {key: v.float() if v.is_floating_point() else v for key, v in load_file(path).items()}
    except SafetensorError as error:
        raise FormatError(f"{path} is no safetensors file ({error}): it is damaged, cut off, or something else under that name") from error


def read_checkpoint(path: Path, ema: bool) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A Lightning checkpoint of gentok's training, as read_folder. Its state dict holds the averaged weights, `current_model_state` the raw
    ones."""
    if path.suffix in (".safetensors", ".json"):
        raise FormatError(f"{path} is a part of a bundle: give the folder that holds bundle.json")
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"{path} is neither a bundle folder nor a training checkpoint (a torch zip file): it is damaged, cut off, or something else"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises on a hostile or foreign pickle, the answer is the same
        raise FormatError(f"{path} was refused: it does not load with weights_only=True, so it may run code or is damaged") from error
    if not isinstance(checkpoint, dict) or "gentok" not in checkpoint:
        raise FormatError(f"{path} is a torch file, but no checkpoint of gentok's training")
    document = checkpoint["gentok"]
    if document["format"] > FORMAT:
        raise FormatError(
            f"{path} is a checkpoint of format {document['format']}; this gentok ({__version__}) reads up to {FORMAT}: upgrade gentok"
        )
    state = checkpoint["state_dict"] if ema else checkpoint.get("current_model_state", checkpoint["state_dict"])

    def part(name: str) -> dict[str, Tensor]:
        return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}

    return document, checkpoint.get("tokenizer_state") or part("tokenizer"), part("generator")


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Into a module. Raises FormatError with a line where the tensors are of another one."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise FormatError(f"{what} does not fit its configuration: {lines[1].strip() if len(lines) > 1 else lines[0]}") from error


def neighbours(path: Path) -> str:
    """The end of a message about a path that is not there: what lies beside it."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder {parent})"
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {parent / close[0]}?" if close else f"; {parent} holds {', '.join(names[:8]) or 'nothing'}"
