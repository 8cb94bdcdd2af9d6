"""Networks that are built to be given stored weights at once, without first filling their parameters with random numbers.

To fill them takes most of the time of building a large network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Unfilled"]

_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
"""What torch lets a mode see; trunc_normal_ it does not. What fills with a constant is cheap, and stays."""


class Unfilled(TorchFunctionMode):
    """Within it, random numbers that would fill a parameter in place are not drawn: it holds NaN, so that one that gets no value later does
    not pass for trained. Buffers, and tensors that become parameters later, are filled as ever."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if func in _RANDOM and isinstance(tensor, nn.Parameter):
            with torch.no_grad():
                return tensor.fill_(torch.nan)
        return func(*args, **kwargs)
