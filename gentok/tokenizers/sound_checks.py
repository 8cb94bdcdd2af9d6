"""What tokenizers of sound share: checks of what they are given, and rows of a batch that end at different times."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentok.errors import counted
from gentok.precision import values_known
from gentok.types import ABSENT, Tokens

__all__ = ["check_known", "check_sound", "frames_of", "groups_of", "within"]


def frames_of(samples: int | Tensor, hop: int) -> int | Tensor:
    """ceil(samples / hop)."""
    return -(-samples // hop)


def within(lengths: Tensor, positions: int) -> Tensor:
    """lengths int64 [B] -> bool [B, positions], True before a row's end."""
    return torch.arange(positions, device=lengths.device) < lengths[:, None]


def groups_of(lengths: Tensor | None, x: Tensor) -> Iterator[tuple[slice | Tensor, int]]:
    """(rows, their length) for every length that occurs among the rows of x [B, ..., T]; all of T where lengths is None."""
    if lengths is None:
        yield slice(None), x.shape[-1]
        return
    for length in lengths.unique().tolist():
        rows = lengths == length
        yield (slice(None) if bool(rows.all()) else rows.nonzero()[:, 0]), length


def check_sound(
    media: Tensor, lengths: Tensor | None, channels: int, rate: int, sample_rate: int | None = None, finite: bool = True
) -> Tensor | None:
    """Checks what a tokenizer of sound is given.

    Args:
        media: float [B, channels, T].
        lengths: int64 [B] in samples, each in 0..T; None: all are T long.
        channels: of the tokenizer.
        rate: of the tokenizer, in Hz.
        sample_rate: of the media in Hz; None: unknown.
        finite: whether values are looked at, which must then be finite.

    Returns:
        lengths as int64 [B] on the media's device; None where there are none.

    Raises:
        ValueError: something is otherwise.
    """
    if media.dim() != 3 or not media.is_floating_point():
        raise ValueError(f"this tokenizer takes float sound [B, {channels}, samples] in [-1, 1]; got {media.dtype} {tuple(media.shape)}")
    if media.shape[1] != channels:
        raise ValueError(f"this tokenizer takes sound of {counted(channels, 'channel')}, got {media.shape[1]}: mix or convert it")
    if sample_rate is not None and sample_rate != rate:
        raise ValueError(f"this tokenizer takes sound of {rate} samples per second, got {sample_rate}: resample it")
    if finite and values_known(media) and not bool(media.isfinite().all()):
        row, _, sample = (~media.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"the sound has a value that is not finite: {float(media[row, 0, sample])} in row {row}, sample {sample}")
    if lengths is None:
        return None
    if lengths.shape != media.shape[:1] or lengths.is_floating_point():
        raise ValueError(f"lengths are int64 [{len(media)}] in samples; got {lengths.dtype} {tuple(lengths.shape)}")
    lengths = lengths.to(media.device, torch.int64)
    if bool((lengths < 0).any()) or bool((lengths > media.shape[2]).any()):
        raise ValueError(f"lengths lie in 0..{media.shape[2]}, the samples of the batch; got {lengths.tolist()}")
    return lengths


def check_known(tokens: Tokens) -> None:
    """Raises ValueError where a position is still masked."""
    if values_known(tokens.codes) and bool((tokens.codes < ABSENT).any()):
        raise ValueError("these tokens have masked positions (UNKNOWN), which a generator fills first")
