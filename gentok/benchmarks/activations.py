"""How many bytes a training step keeps for its backward pass: the tensors that autograd saves, counted without memory or data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentok.interfaces import Tokenizer
from gentok.types import Batch, Condition, Latents, Tokens

__all__ = ["kept_for_backward", "saved_bytes"]


def saved_bytes(function: Callable[[], Tensor], without: nn.Module) -> int:
    """Bytes that autograd keeps of a computation.

    Args:
        function: whose result's gradient would be taken.
        without: its parameters and buffers do not count; they are there anyway.
    """
    own = {x.untyped_storage()._cdata for x in (*without.parameters(), *without.buffers())}
    kept: dict[int, Tensor] = {}  # by storage, which lives as long as its tensor is here

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept.setdefault(x.untyped_storage()._cdata, x)
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
        size = sum(x.untyped_storage().nbytes() for x in kept.values())
        del result
    return size


def kept_for_backward(model: Any, tokenizer: Tokenizer, device: str = "meta") -> int | None:
    """Bytes that one item keeps, in float32, without the loss's own; None where the model cannot run on the meta device.

    Args:
        model: a generator of the tokenizer's tokens, or the tokenizer.
        tokenizer: on the same device.
        device: where both are.
    """
    spec = tokenizer.spec
    try:
        with torch.device(device):
            if model is tokenizer:
                shape = (1, *(spec.media_shape or ()))
                batch = Batch(torch.zeros(shape), torch.zeros(1, dtype=torch.int64))
                return saved_bytes(lambda: _sum(tokenizer(batch)), model)
            items = _tokens(spec)
            with torch.device("cpu"):
                condition: Condition = model.condition_spec.parse(None, 1)
            return saved_bytes(lambda: _sum(model(items, condition.to(device))), model)
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def _tokens(spec: Any) -> Tokens | Latents:
    if not spec.levels:
        return Latents(torch.zeros(1, spec.width, spec.positions), spec)
    return Tokens(torch.zeros(1, spec.levels, spec.positions, dtype=torch.int64), spec)


def _sum(value: Any) -> Tensor:
    """A scalar that depends on all tensors with a gradient in a result."""
    found: list[Tensor] = []

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.extend([value.sum()] if value.requires_grad else [])
        elif isinstance(value, (list, tuple)):
            for part in value:
                look(part)
        elif isinstance(value, Mapping):
            look(list(value.values()))
        elif hasattr(value, "__dict__"):
            look(list(vars(value).values()))

    look(value)
    return torch.stack(found).sum()
