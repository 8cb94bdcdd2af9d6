"""Writing a bundle folder, whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gentok import __version__
from gentok.atomic import named_errors, save_tensors, sync
from gentok.build import identify
from gentok.bundle.card import card
from gentok.bundle.files import FORMAT, checksum, last_good, sealed
from gentok.bundle.fingerprints import stamp
from gentok.bundle.models import build_tokenizer
from gentok.interfaces import Generator, Tokenizer
from gentok.types import ConditionSpec
from gentok.types.documents import seal

__all__ = ["save"]


def save(
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer,
    tokenizer_config: Mapping[str, Any],
    generator: Generator | None = None,
    generator_config: Mapping[str, Any] | None = None,
    condition_spec: ConditionSpec | None = None,
    meta: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes a bundle folder, whole or not at all.

    Args:
        path: the folder; a bundle that is there is replaced.
        tokenizer, tokenizer_config: the tokenizer and what it is rebuilt from.
        generator, generator_config: the generator and what it is rebuilt from; None for a tokenizer's bundle.
        condition_spec: what the generator is conditioned on.
        meta: metrics, data, command, seed: plain JSON.
        dtype: "float32", or "bfloat16", which halves the size; the fingerprint is that of the rounded weights.

    Returns:
        The folder.

    Raises:
        ValueError: `path` is something else than a bundle, or the generator models other tokens.
    """
    path, tokenizer_config = Path(path), identify(tokenizer.portable(tokenizer_config))
    if path.exists() and not (path / "bundle.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is no bundle: choose another path, or move it away")
    kept = tokenizer.spec
    state = _rounded(tokenizer.state_dict(), dtype)
    if dtype != "float32" or not kept.encode_fingerprint:
        rounded = build_tokenizer(tokenizer_config)
        rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        kept = stamp(rounded, tokenizer_config)
    document: dict[str, Any] = {
        "format": FORMAT,
        "kind": "tokenizer" if generator is None else "generator",
        "gentok": __version__,
        "dtype": dtype,
        "tokenizer": {"config": {k: v for k, v in tokenizer_config.items() if k not in tokenizer.training_only}, "spec": kept.to_dict()},
        "condition_spec": (condition_spec or ConditionSpec()).to_dict(),
        "meta": {**identify(meta or {}), "versions": {"python": platform.python_version(), "torch": torch.__version__}},
    }
    if "guidance" in document["meta"]:
        document["guidance"] = document["meta"]["guidance"]
    if generator is not None:
        document["generator"] = {"config": identify(generator.portable(generator_config or {})), "spec": generator.spec.to_dict()}
        if not generator.spec.same_codes(kept):
            raise ValueError(f"the generator models {generator.spec.describe()}; the tokenizer beside it makes {kept.describe()}")

    states = {"tokenizer": state} if generator is None else {"tokenizer": state, "generator": _rounded(generator.state_dict(), dtype)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with named_errors(path):
            _write(temporary, document, states)
            _take_the_place(temporary, path)
    except SafetensorError as error:  # its writer's word for a full disk
        raise OSError(f"the bundle {path} could not be written ({error}): what was there before is as it was") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _write(folder: Path, document: dict[str, Any], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """All files of a bundle, flushed to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, state in states.items():
        (folder / name).mkdir(parents=True)
        save_tensors(state, folder / name / "model.safetensors")
    document["checksums"] = {str(file.relative_to(folder)): checksum(file) for file in sorted(folder.rglob("*.safetensors"))}
    document["checksum"] = seal(sealed(document))["checksum"]
    (folder / "README.md").write_text(card(document), encoding="utf-8")
    (folder / "bundle.json").write_text(json.dumps(document, indent=1) + "\n")
    for file in (*folder.rglob("*"), folder):
        sync(file)


def _take_the_place(temporary: Path, path: Path) -> None:
    old = last_good(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(temporary, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _rounded(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    target = getattr(torch, dtype)
    return {k: (v.detach().to("cpu", target) if v.is_floating_point() else v.detach().cpu()).contiguous().clone() for k, v in state.items()}
