"""What the blocks of deep networks share: training may compile them, or compute their activations twice, block by block.

Compiled: one graph serves all blocks that look alike (regional compilation), which compiles in seconds where a whole model takes minutes.
Recomputed: of a block only the input is kept, and its activations are made again when its gradient is due (Chen et al., "Training deep
nets with sublinear memory cost", arXiv 1604.06174). Neither changes names or values of weights, nor what happens outside of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gentok.rng import RowRNG

__all__ = ["Block"]


class Block(nn.Module):
    """One of the blocks that a deep network is a stack of. While it is trained, its forward pass is a function of its arguments: it draws
    from no other RowRNG, and has no other effect.

    Attributes:
        recompute: whether activations are made again in the backward pass and not kept.
        compiler: the backend of torch.compile that its training forward pass goes through, such as "inductor"; None: none.
    """

    recompute: bool = False
    compiler: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = _as_told(cls.forward)  # type: ignore[method-assign]


def _as_told(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward method of a class of blocks, as `recompute` and `compiler` say."""

    @functools.wraps(forward)
    def call(self: Block, *args: Any, **kwargs: Any) -> Tensor:
        if not ((self.recompute or self.compiler) and self.training and torch.is_grad_enabled()):
            return forward(self, *args, **kwargs)
        run = functools.partial(forward if self.compiler is None else _compiled(forward, self.compiler), self)
        return _recomputed(run, args, kwargs) if self.recompute else run(*args, **kwargs)

    return call


@functools.cache
def _compiled(forward: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    return torch.compile(forward, backend=backend)


def _recomputed(run: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """run(*args, **kwargs), and again in the backward pass, with the same draws: torch remembers where its own generators stood, and each
    RowRNG begins again where it stands now."""
    before = {id(rng): rng.to(rng.device) for rng in (*args, *kwargs.values()) if isinstance(rng, RowRNG)}
    runs = 0

    def once_more(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal runs
        runs += 1
        if runs > 1 and before:  # each time from a copy: there may be several backward passes
            args = tuple(again(value) for value in args)
            kwargs = {name: again(value) for name, value in kwargs.items()}
        return run(*args, **kwargs)

    def again(value: Any) -> Any:
        return before[id(value)].to(value.device) if isinstance(value, RowRNG) else value

    result: Tensor = checkpoint(once_more, *args, use_reentrant=False, **kwargs)
    return result
