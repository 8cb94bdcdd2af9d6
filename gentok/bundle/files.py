"""Reading the files of a bundle or of a training checkpoint, with one line where they are not what they should be.

Every byte is checked: a bundle's by the checksums in bundle.json, which has one of its own, a checkpoint's by those of a zip file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gentok import __version__
from gentok.errors import FormatError
from gentok.types import ConditionSpec, TokenSpec
from gentok.types.documents import check_limits, check_seal, parse, read
from gentok.types.formats import fitted

__all__ = [
    "FORMAT", "NewerFormatError", "State", "check_checksum", "checksum", "last_good", "load_state", "neighbours", "notes",
    "read_checkpoint", "read_folder", "read_training", "sealed", "specs",
]  # fmt: skip

FORMAT = 3
"""3: bundle.json has a checksum. 2: components by id, checksums of weights. 1: components by the names in gentok/interfaces/format1.py.
2 and 1 are read, never written."""
State = dict[str, Tensor]

_PART = dict[str, dict[str, Any]]  # config and spec
_DOCUMENT = {
    "format": int, "kind": Literal["tokenizer", "generator"], "tokenizer": _PART, "generator": _PART, "condition_spec": _PART,
    "meta": dict[str, Any], "checksums": dict[str, str], "guidance": float,
}  # fmt: skip


class NewerFormatError(FormatError):
    """A file of a newer gentok."""


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


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the checksum of bundle.json is over: all that a model computes depends on, and not the notes about it (`meta`)."""
    return {key: value for key, value in document.items() if key != "meta"}


def notes(document: Mapping[str, Any]) -> dict[str, Any]:
    """`meta`, of which the guidance that samples are drawn with stands under the checksum, too (format 3)."""
    return {**document["meta"], **{key: document[key] for key in ("guidance",) if key in document}}


def check_checksum(document: Mapping[str, Any], path: Path) -> None:
    """That of bundle.json; after everything else, so that what can be said more exactly is. Raises FormatError."""
    if path.is_dir() and (document["format"] >= 3 or "checksum" in document):
        check_seal(sealed(document), str(path / "bundle.json"))


def read_folder(path: Path) -> tuple[dict[str, Any], State, State]:
    """A bundle folder -> (bundle.json, the tokenizer's tensors, the generator's). Raises FileNotFoundError or FormatError with a line."""
    what = path / "bundle.json"
    document = read(what)
    _check_document(document, str(what), "bundle")
    generator = _read_weights(path, "generator", document) if document["kind"] == "generator" else {}
    return document, _read_weights(path, "tokenizer", document), generator


def _check_document(document: Mapping[str, Any], what: str, kind: str) -> None:
    """That of a bundle or checkpoint holds what it must, of the right types."""
    if not isinstance(document.get("format"), int):
        raise FormatError(f"{what} has no format number: this is not a gentok {kind}")
    if document["format"] > FORMAT:
        raise NewerFormatError(
            f"{what} is a {kind} of format {document['format']}; this gentok ({__version__}) reads up to {FORMAT}: upgrade gentok"
        )
    parts = ("tokenizer", "generator") if document.get("kind") == "generator" else ("tokenizer",)
    needed = ["kind", "condition_spec", "meta", *parts, *(["checksums"] if kind == "bundle" and document["format"] >= 2 else [])]
    missing = [key for key in needed if key not in document]
    fitted(document, _DOCUMENT, what)
    missing += [f"{part}.{key}" for part in parts for key in ("config", "spec") if key not in document.get(part, ())]
    if missing:
        raise FormatError(f"{what} lacks {', '.join(missing)}: the {kind} is damaged")
    fitted(document["meta"], {"guidance": float}, f"{what}: meta")


def specs(document: Mapping[str, Any], path: Path) -> tuple[TokenSpec, TokenSpec, ConditionSpec]:
    """What the tokens of the tokenizer are, what those of the generator are (of a tokenizer's bundle, the same), and its conditions.

    Raises FormatError where they are damaged, of a newer format, or of impossible sizes.
    """
    try:
        tokens = [TokenSpec.from_dict(document[part]["spec"]) for part in ("tokenizer", document["kind"])]
        return tokens[0], tokens[1], ConditionSpec.from_dict(document["condition_spec"])
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def _read_weights(folder: Path, part: str, document: Mapping[str, Any]) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = f"{part}/model.safetensors"
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"the bundle lacks {path}")
    stored = document.get("checksums", {}).get(name)
    if document["format"] >= 2 and stored is None:
        raise FormatError(f"bundle.json has no checksum of {path}: the bundle is damaged")
    try:
        state = {key: v.float() if v.is_floating_point() else v for key, v in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # the latter of types that torch lacks
        reason = str(error)[:200]
        raise FormatError(f"{path} is no safetensors file ({reason}): it is damaged, cut off, or something else under that name") from error
    if stored is not None and checksum(path) != stored:
        raise FormatError(f"{path} is not what was written there (its checksum differs): it was changed or damaged")
    return state


def read_training(path: Path) -> dict[str, Any]:
    """All of a training checkpoint, mapped from the file. Raises FormatError with a line on anything else."""
    if path.suffix in (".safetensors", ".json"):
        raise FormatError(f"{path} is a part of a bundle: give the folder that holds bundle.json")
    try:
        is_zip = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        is_zip = False
    if not is_zip:
        raise FormatError(
            f"{path} is neither a bundle folder nor a training checkpoint (a torch zip file): it is damaged, cut off, or something else"
        )
    _check_zip(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch raises on a hostile or foreign pickle, the answer is the same
        getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()  # or torch refuses the next file for the sake of this one
        raise FormatError(f"{path} was refused: it does not load with weights_only=True, so it may run code or is damaged") from error
    if not isinstance(checkpoint, dict) or "gentok" not in checkpoint:
        raise FormatError(f"{path} is a torch file, but no checkpoint of gentok's training")
    check_limits(checkpoint, str(path))
    try:
        checkpoint["gentok"] = parse(json.dumps(checkpoint["gentok"]).encode(), f"the description in {path}")
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} does not say what it is a checkpoint of ({error}): it is damaged") from error
    _check_document(checkpoint["gentok"], str(path), "checkpoint")
    for key in ("state_dict", "current_model_state", "tokenizer_state"):
        state = checkpoint.get(key, {} if key != "state_dict" else None)
        if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            raise FormatError(f"the {key} of {path} is no group of named tensors: it is damaged")
    _check_whole(checkpoint, str(path))
    return checkpoint


def _check_zip(path: Path) -> None:
    """torch stores plainly, with a checksum of every entry, and does not check it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            whole = plain and sum(entry.file_size for entry in entries) <= os.path.getsize(path)
            broken = archive.testzip() if whole else entries[0].filename
    except Exception as error:  # of a damaged archive zipfile raises whatever it meets
        raise FormatError(f"{path} was refused: it is damaged ({type(error).__name__}: {error})") from error
    if broken is not None:
        raise FormatError(f"{path} was refused: {broken} in it is not what was written there: it was changed or damaged")


def _check_whole(value: Any, what: str) -> None:
    """Every tensor must have all its numbers: one whose stride is 0 could claim any size."""
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
        if not plain or (value.storage_offset() + value.numel()) * value.element_size() > value.untyped_storage().nbytes():
            raise FormatError(f"{what} is a tensor that is not whole: it is damaged")
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_whole(item, f"{str(key)[:80]} in {what}" if isinstance(item, Tensor) else what)


def read_checkpoint(path: Path, ema: bool) -> tuple[dict[str, Any], State, State]:
    """A Lightning checkpoint of gentok's training, as read_folder. Its state dict holds the averaged weights, `current_model_state` the raw
    ones."""
    checkpoint = read_training(path)
    state: State = checkpoint["state_dict"]
    if not ema:
        state = checkpoint.get("current_model_state", state)

    def part(name: str) -> State:
        return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}

    return checkpoint["gentok"], checkpoint.get("tokenizer_state") or part("tokenizer"), part("generator")


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Into a module. Raises FormatError with a line where the tensors are of another one."""
    try:
        module.load_state_dict(state)
    except Exception as error:  # whatever a module's own hooks raise on names and shapes of a file
        lines = str(error).splitlines() or [type(error).__name__]
        raise FormatError(f"{what} does not fit its configuration: {lines[1].strip() if len(lines) > 1 else lines[0]}") from error


def neighbours(path: Path) -> str:
    """The end of a message about a path that is not there: what lies beside it."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder {parent})"
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {parent / close[0]}?" if close else f"; {parent} holds {', '.join(names[:8]) or 'nothing'}"
