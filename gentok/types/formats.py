"""What words on disk are held to: unknown keys stop with a line, and fingerprints tell two of them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gentok.errors import FormatError

__all__ = ["strict", "fingerprint"]


def strict(cls: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`values` as constructor arguments of `cls`; an unknown key is a newer format and stops with a line."""
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise FormatError(f"{what} has the unknown key {unknown[0]!r}: it was written by a newer gentok; upgrade gentok to read it")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def fingerprint(*parts: Any) -> str:
    """16 hex digits over tensors (dtype, shape, bytes), state dicts and JSON-able settings, in the order given."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            value = part.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for key in sorted(part):
                digest.update(key.encode())
                digest.update(fingerprint(part[key]).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
