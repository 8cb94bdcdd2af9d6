"""The tensors of a TorchScript archive (.jit), read without running its code.

The archive is a zip file: data.pkl describes the tree of modules with their attributes, data/0, data/1, ... hold the numbers, code/ is the
program, which is never looked at. The description may name modules and tensors alone; anything else is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_torchscript"]

_TYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip


class _Module:
    """A module of the archive: what it is called there is its name alone."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _tensor(numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return numbers.as_strided(size, stride, offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name.removesuffix("Storage") in _TYPES:
            return _TYPES[name.removesuffix("Storage")]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":  # lists with a type, and values with one
            return _first
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a module nor a tensor")

    def persistent_load(self, place: Any) -> Tensor:
        _, dtype, key, *_ = place
        numbers = self.archive.read(f"{self.root}data/{key}")
        return torch.frombuffer(bytearray(numbers), dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _tensors(module: _Module, at: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield at + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{at}{name}.")


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the module, those too that a state dict would leave out.

    Raises:
        ValueError: it is no TorchScript archive.
        pickle.UnpicklingError: it describes more than modules and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        module = _Reader(archive, roots[0]).load() if roots else None
    if not isinstance(module, _Module):
        raise ValueError(f"{path} is no TorchScript archive of a module")
    return dict(_tensors(module))
