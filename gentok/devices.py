"""Which device a word means."""

from __future__ import annotations

import torch

from gentok.errors import ConfigError

__all__ = ["chosen_device"]


def chosen_device(device: str) -> str:
    """The device that `device=` means.

    Args:
        device: cpu, cuda, cuda:N or mps; auto: a GPU where there is one.

    Returns:
        A name that torch knows, of a device that is there.

    Raises:
        ConfigError: this machine has no such device.
    """
    count = torch.cuda.device_count() if device.startswith(("auto", "cuda")) else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    number = device.partition(":")[2]
    if (device.startswith("cuda") and int(number or 0) >= count) or (device == "mps" and not torch.backends.mps.is_available()):
        there = ["cpu", *(f"cuda:{i}" for i in range(count)), *["mps"] * torch.backends.mps.is_available()]
        raise ConfigError(f"device={device}: torch finds no such device on this machine; there is {', '.join(there)}")
    return device
