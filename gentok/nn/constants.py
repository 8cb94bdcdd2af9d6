"""Constant tensors of a network, kept outside its buffers.

Index maps and rotation tables follow from a constructor's arguments, so they are no part of a checkpoint; and a module that was built on
the meta device and then filled from a file would be left with garbage in its non-persistent buffers. `Constants` keeps them on the CPU,
whatever the default device is while they are made, and copies them to a device when they are first asked for there.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

__all__ = ["Constants"]


class Constants:
    """Named tensors, made on the CPU (wrap their making in `torch.device("cpu")`), served on any device and in any float type."""

    def __init__(self, **tensors: Tensor):
        self._tensors = tensors
        self._copies: dict[tuple[torch.device, torch.dtype | None], SimpleNamespace] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> SimpleNamespace:
        """The tensors as attributes, on `device`; floating ones in `dtype` where it is given."""
        key = (device, dtype)
        if key not in self._copies:
            # A copy made inside inference mode would be refused by autograd later: a validation step may well come before training.
            with torch.inference_mode(False):
                self._copies[key] = SimpleNamespace(
                    **{k: v.to(device, dtype if dtype is not None and v.is_floating_point() else v.dtype) for k, v in self._tensors.items()}
                )
        return self._copies[key]
