"""What a convolutional codec puts between its strided layers and its latent: a memory over frames, added to what it reads.

    LSTM        x + lstm(x), one direction (EnCodec, arXiv 2210.13438, section 3.1).
    Attention   x + g * transformer(x), g per channel, 0.01 at the start (as Mimi scales its layers, arXiv 2410.00037); causal over a window
                of frames, or over all frames in both directions. Deviation: the whole transformer is scaled, not each of its branches.

Both work chunk by chunk: the LSTM's state, or the keys and values of the window before the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gentok.nn.rope import Rotation, rotation
from gentok.nn.streaming import StreamingModule
from gentok.nn.transformer import Transformer
from gentok.precision import exporting

__all__ = ["LSTM", "RecentKeys", "WindowModule", "WindowedAttention", "window_mask"]


@dataclass
class LSTMState:
    """hidden: (h, c), each float [layers, B, D]."""

    hidden: tuple[Tensor, Tensor] | None = None


class LSTM(StreamingModule):
    """float [B, width, N] -> the same shape; causal.

    Args:
        width: channels.
        layers: one above the other, beside a skip.
    """

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lstm(x.transpose(1, 2))[0].transpose(1, 2)

    def init_state(self) -> LSTMState:
        return LSTMState()

    def step(self, x: Tensor, state: LSTMState, last: bool = False) -> Tensor:
        if not x.shape[2]:
            return x
        y, state.hidden = self.lstm(x.transpose(1, 2), state.hidden)
        return x + y.transpose(1, 2)


@dataclass
class RecentKeys:
    """What Transformer.extend takes as its cache: the latest keys and values of every layer.

    Attributes:
        keep: frames that are kept.
        depth: layers.
        seen: frames of the past.
        kept: layer -> (keys, values), each float [B, H, <= keep, d].
    """

    keep: int
    depth: int
    seen: int = 0
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    context = context_mask = modulation = None

    def write(self, layer: int, key: Tensor, value: Tensor, window: Seen) -> tuple[Tensor, Tensor]:
        """The chunk's keys and values -> those that it attends, with what is kept before them."""
        if layer in self.kept:
            key, value = (torch.cat(pair, 2) for pair in zip(self.kept[layer], (key, value)))
        first = max(0, key.shape[2] - self.keep)
        self.kept[layer] = key[:, :, first:], value[:, :, first:]
        return key, value


@dataclass
class Seen:
    """mask bool [1, 1, S, past + S]: what the steps of a chunk attend."""

    mask: Tensor
    causal = False


def window_mask(window: int, first: int, past: int, frames: int, device: torch.device) -> Tensor:
    """Which frames see which: each itself and the window - 1 before it.

    Args:
        window: frames that a frame sees.
        first: number of the first frame.
        past: frames before the first that are still there.
        frames: how many.
        device: of the result.

    Returns:
        bool [1, 1, frames, past + frames], True where seen.
    """
    query = torch.arange(first, first + frames, device=device)[:, None]
    key = torch.arange(first - past, first + frames, device=device)
    return ((key <= query) & (key > query - window))[None, None]


class WindowModule(StreamingModule):
    """What modules share in which a frame attends itself and the window - 1 frames before it: the masks, whole or chunk by chunk.

    Attributes:
        window: frames that a frame attends; ignored where not causal.
        depth: layers of attention.
        head_width: channels of a head.
        causal: whether no frame sees a later one.
    """

    def __init__(self, window: int, depth: int, head_width: int, causal: bool = True):
        super().__init__()
        if window < 1:
            raise ValueError(f"attention needs a window of at least the frame itself; got {window}")
        self.window, self.depth, self.head_width, self.causal = window, depth, head_width, causal

    def _attend(self, x: Tensor, rope: Rotation, mask: Tensor | None, recent: RecentKeys | None = None) -> Tensor:
        """x float [B, N, D] -> [B, N, D]. mask: None for all frames, or all earlier ones of a causal model."""
        raise NotImplementedError

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        """The input float [B, D, N] and what was attended float [B, N, D] -> the output [B, D, N]."""
        return y.transpose(1, 2)

    def _rope(self, first: int, frames: int, device: torch.device) -> Rotation:
        return rotation(torch.arange(first, first + frames, device=device)[:, None], head_width=self.head_width)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        mask = window_mask(self.window, 0, 0, frames, x.device) if self.causal and (exporting() or frames > self.window) else None
        return self._leave(x, self._attend(x.transpose(1, 2), self._rope(0, frames, x.device), mask))

    def init_state(self) -> RecentKeys:
        if not self.causal:
            raise ValueError("attention in both directions cannot work chunk by chunk: build it with causal=true")
        return RecentKeys(self.window - 1, self.depth)

    def step(self, x: Tensor, state: RecentKeys, last: bool = False) -> Tensor:
        frames, first = x.shape[2], state.seen
        if not frames:
            return x
        mask = window_mask(self.window, first, min(first, state.keep), frames, x.device)
        state.seen += frames
        return self._leave(x, self._attend(x.transpose(1, 2), self._rope(first, frames, x.device), mask, state))


class WindowedAttention(WindowModule):
    """float [B, width, N] -> the same shape.

    Args:
        width: channels.
        layers: blocks of the transformer.
        heads: of attention.
        window: frames that a frame attends, itself and those before it; ignored where not causal.
        causal: whether no frame sees a later one.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, width: int, layers: int = 8, heads: int = 8, window: int = 250, causal: bool = True):
        super().__init__(window, layers, width // heads, causal)
        self.transformer = Transformer(width, layers, heads, causal=causal)
        self.gate = nn.Parameter(torch.full((width,), 0.01))

    def _attend(self, x: Tensor, rope: Rotation, mask: Tensor | None, recent: RecentKeys | None = None) -> Tensor:
        return self.transformer(x, rope, mask=mask) if recent is None else self.transformer.extend(x, rope, recent, Seen(mask))

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        return x + (self.gate * y).transpose(1, 2)  # in the layout of x, which what follows reads fastest
