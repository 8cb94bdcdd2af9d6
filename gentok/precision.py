"""What is computed in full precision also under autocast."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["no_autocast"]


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast disabled on `device`; nothing on one that knows none (the meta device)."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)
