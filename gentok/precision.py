"""What is computed in full precision also under autocast."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least_float32", "no_autocast"]


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast disabled on `device`; nothing on one that knows none (the meta device)."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32; a float64 x as it is."""
    return x if x.dtype == torch.float64 else x.float()
