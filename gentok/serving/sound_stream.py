"""A sound decoded while its frames are drawn.

A codec that works chunk by chunk gives what its whole decoder gives (gentok/tokenizers/streaming.py). One that looks ahead is decoded in
windows: a frame's samples are final once the frames that they may depend on are there, and those far behind are left out. How far that
is, is measured once: random codes of which one frame is changed. With a decoder that remembers everything the sound comes at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentok.samplers.base import Sampler
from gentok.types import Frames, Tokens

__all__ = ["SoundStream", "reach"]

_PROBE = 96
"""Frames of the sound on which a reach is measured."""


@torch.no_grad()
def reach(tokenizer: Any, frames: int = _PROBE) -> tuple[int, int] | None:
    """How many frames before and behind a frame its samples depend on.

    Args:
        tokenizer: of sound.
        frames: of the sound on which it is measured.

    Returns:
        (before, behind); None: on more than half of these frames, or its sound cannot be made of parts.
    """
    spec = tokenizer.spec
    if not isinstance(spec.grid, Frames) or tokenizer.generative or set(spec.strides or (1,)) != {1}:
        return None
    frames -= frames % spec.frame_multiple
    sizes, generator = torch.tensor(spec.vocab_sizes), torch.Generator().manual_seed(0)
    codes = (torch.rand(1, spec.levels, frames, generator=generator) * sizes[:, None]).long()
    device = next(tokenizer.parameters()).device
    whole, before, behind = tokenizer.decode(Tokens(codes.to(device), spec)), 0, 0
    hop = whole.shape[-1] // frames
    for middle in range(frames // 2, frames // 2 + 4):
        other = codes.clone()
        other[0, :, middle] = (other[0, :, middle] + 1 + sizes // 2) % sizes
        moved = (tokenizer.decode(Tokens(other.to(device), spec)) != whole)[0].any(0).nonzero()[:, 0] // hop
        if len(moved):
            before, behind = max(before, int(moved[-1]) - middle), max(behind, middle - int(moved[0]))
    # the last bits of what lies at the very edge may happen to be the same: a frame more on each side
    before, behind = before + 1, behind + 1
    return None if max(before, behind) >= frames // 2 - 4 else (before, behind)


class SoundStream:
    """The sound of one item, as far as it is final.

    Args:
        tokenizer: its tokenizer.
        reach: of `reach`; not needed of a tokenizer that works chunk by chunk.
        sampler: that draws the item; None: its codes are there.

    Attributes:
        sent: samples that were handed out.
    """

    def __init__(self, tokenizer: Any, reach: tuple[int, int] | None, sampler: Sampler | None = None):
        self.tokenizer, self._reach, self.sent, self._frames = tokenizer, reach, 0, 0
        self._final = sampler is None or not sampler.revises
        self._stream = None if tokenizer.latency_samples is None else tokenizer.stream(1)

    @torch.no_grad()
    def feed(self, tokens: Tokens, last: bool = False) -> Tensor | None:
        """What can be heard of it now and could not before.

        Args:
            tokens: of one item, as far as it is drawn.
            last: whether nothing comes after them.

        Returns:
            float [C, n]; None: nothing new.
        """
        if not (self._final or last) or (self._stream is None and self._reach is None and not last):
            return None
        ready = int((~tokens.masked.any(1) & tokens.present.any(1)).to(torch.int64).cumprod(1).sum(1))
        ready -= ready % tokens.spec.frame_multiple
        sound = self._windows(tokens, ready, last) if self._stream is None else self._chunk(tokens, ready, last)
        if sound is None or not sound.shape[-1]:
            return None
        self.sent += sound.shape[-1]
        return sound.float().cpu()

    def _chunk(self, tokens: Tokens, ready: int, last: bool) -> Tensor | None:
        parts = []
        if ready > self._frames:
            parts.append(self._stream.decode(Tokens(tokens.codes[:, :, self._frames : ready], tokens.spec))[0])
            self._frames = ready
        if last:
            parts.append(self._stream.flush()[1][0])
        return torch.cat(parts, -1) if parts else None

    def _windows(self, tokens: Tokens, ready: int, last: bool) -> Tensor | None:
        before, behind = (ready, 0) if self._reach is None else self._reach
        multiple = tokens.spec.frame_multiple
        final = ready if last else (ready - behind) // multiple * multiple
        if final <= self._frames:
            return None
        begin = max(self._frames - before, 0) // multiple * multiple
        window = self.tokenizer.decode(Tokens(tokens.codes[:, :, begin:ready], tokens.spec))[0]
        hop = window.shape[-1] // (ready - begin)
        sound = window[:, (self._frames - begin) * hop : (final - begin) * hop]
        self._frames = final
        return sound
