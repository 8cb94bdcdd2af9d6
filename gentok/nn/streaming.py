"""What layers declare that work chunk by chunk, and chains of such layers.

    state = layer.init_state()
    y = layer.step(x, state, last)      for every chunk x float [B, C, n], n >= 0, of a sound

The outputs of the chunks, one behind the other, are the output of the whole, whatever the sizes of the chunks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gentok.interfaces import Layer

__all__ = ["Chain", "ChainLayer", "StreamingModule"]


class StreamingModule(nn.Module):
    """A module over time that works on the whole (`forward`) or chunk by chunk (`init_state`, `step`)."""

    def init_state(self) -> Any:
        """The state before the first chunk.

        Returns:
            An object that `step` changes.

        Raises:
            ValueError: the module looks ahead, so that it cannot work chunk by chunk.
        """
        raise NotImplementedError

    def step(self, x: Tensor, state: Any, last: bool = False) -> Tensor:
        """The next chunk.

        Args:
            x: float [B, C, n], n >= 0.
            state: of `init_state`; it is changed.
            last: whether nothing follows.

        Returns:
            What the chunk completes, float [B, C', m], m >= 0.
        """
        raise NotImplementedError


class Chain(nn.Sequential, StreamingModule):
    """Modules in a row. One that is not a StreamingModule treats every sample by itself, so it has no state."""

    def init_state(self) -> list[Any]:
        return [module.init_state() if isinstance(module, StreamingModule) else None for module in self]

    def step(self, x: Tensor, state: list[Any], last: bool = False) -> Tensor:
        for module, memory in zip(self, state, strict=True):
            x = module.step(x, memory, last) if isinstance(module, StreamingModule) else module(x)
        return x


class ChainLayer(StreamingModule, Layer):
    """An encoder or a decoder that is a chain."""

    @property
    def chain(self) -> Chain:
        """The modules in the order of their use."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)

    def init_state(self) -> list[Any]:
        return self.chain.init_state()

    def step(self, x: Tensor, state: list[Any], last: bool = False) -> Tensor:
        return self.chain.step(x, state, last)
