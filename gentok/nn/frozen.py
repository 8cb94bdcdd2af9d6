"""A frozen module that a network reads: neither trained, averaged nor saved with it, since it is saved where it belongs."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Frozen"]


class Frozen:
    """A copy of `module`, in eval mode and without gradients, outside the registered children of whoever holds it; served on any device,
    so that the original stays where it is. Copies of the holder share it."""

    def __init__(self, module: nn.Module):
        self._source = copy.deepcopy(module).eval().requires_grad_(False)
        self._copies: dict[torch.device, nn.Module] = {}

    def __deepcopy__(self, memo: dict) -> Frozen:
        return self

    def on(self, device: torch.device) -> nn.Module:
        """The module on `device`."""
        if device not in self._copies:
            with torch.inference_mode(False):  # else autograd would refuse its tensors later
                self._copies[device] = copy.deepcopy(self._source).to(device)
        return self._copies[device]
