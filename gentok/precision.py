"""What is computed in full precision also under autocast, and when numbers can be looked at."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least_float32", "exporting", "no_autocast", "values_known"]


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast disabled on `device`; nothing on one that knows none (the meta device)."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32; a float64 x as it is."""
    return x if x.dtype == torch.float64 else x.float()


def exporting() -> bool:
    """Whether a model is being traced by torch.export: its sizes are symbols, and a loop over blocks of a batch would fix them."""
    return getattr(torch.compiler, "is_exporting", bool)()  # from torch 2.7 on


def values_known(x: Tensor) -> bool:
    """Whether the numbers of x can be looked at: not on the meta device, and not while a model is exported."""
    return not (x.is_meta or exporting())
