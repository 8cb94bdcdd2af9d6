"""Building what a file describes, without taking more memory or time than the weights beside it speak for.

A configuration is a claim: `width: 1000000` asks for terabytes. So a stored model is built twice: first without memory (on torch's meta
device), which ends at the first tensor that is larger, or one more, than the weights in the file allow. Then names and shapes are compared,
and only then it is built for real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gentok.bundle.files import load_state
from gentok.errors import ConfigError, FormatError
from gentok.unfilled import Unfilled

__all__ = ["build_stored"]

_FREE = 128 << 20  # bytes of one tensor that no weight speaks for, such as a mask of attention
_OPERATIONS = 200_000  # of a model without weights; index maps of long items take many
_Model = TypeVar("_Model", bound=nn.Module)


class _Limits(TorchDispatchMode):
    """Stops what makes larger tensors, or more of them, than `state` allows."""

    def __init__(self, state: Mapping[str, Tensor], what: str):
        super().__init__()
        numbers = sum(value.numel() for value in state.values())
        self.what, self.bytes = what, _FREE + 8 * numbers
        self.left = {"operations": _OPERATIONS + numbers // 20, "parameters": 1000 + 20 * len(state)}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.left["operations"] -= 1
        self.left["parameters"] -= function.__name__.startswith("empty.")
        size = out.numel() * out.element_size() if isinstance(out, Tensor) else 0
        if size > self.bytes or min(self.left.values()) < 0:
            asked = f"a tensor of {size:,} bytes" if size > self.bytes else "far more layers than it has weights"
            raise FormatError(f"{self.what} is not what its configuration describes, which asks for {asked}: it was changed or damaged")
        return out


def build_stored(build: Callable[[], _Model], state: Mapping[str, Tensor], what: str, *, trusted: bool = False) -> _Model:
    """A model from a stored configuration, with its weights.

    Args:
        build: makes it; called twice.
        state: the stored weights.
        what: is built, for messages, such as "the tokenizer in PATH".
        trusted: leave the check out, which what is read from a user's own files while it is built does not survive.

    Returns:
        The model, with `state` in it.

    Raises:
        FormatError: the configuration cannot be built, or describes other weights; nothing large has been made then.
        ConfigError: it names something that may not be built.
    """
    if not trusted:
        with torch.device("meta"), _Limits(state, what):
            shapes = {name: tuple(value.shape) for name, value in _built(build, what).state_dict().items()}
        stored = {name: tuple(value.shape) for name, value in state.items()}
        for name in (*shapes, *stored):
            if shapes.get(name) != stored.get(name):
                has, asks = (f"{name} of shape {found[name]}" if name in found else f"no {name}" for found in (stored, shapes))
                raise FormatError(f"{what} does not fit its configuration: it has {has}, the configuration asks for {asks}")
    with Unfilled():
        model = _built(build, what)
    load_state(model, state, what)
    return model


def _built(build: Callable[[], _Model], what: str) -> _Model:
    try:
        return build()
    except (ConfigError, FormatError, OSError, ImportError):
        raise
    except Exception as error:  # whatever a constructor raises on values that it was not made for, the answer is the same
        reason = " ".join(str(error).split())[:400]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise FormatError(f"{what} cannot be built as its configuration says: {kind}{reason}") from error
