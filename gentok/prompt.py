"""What a user gives a sample to begin with: an image of which a region stays, or a sound whose first seconds stay and a duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import read_picture
from gentok.data.sound_files import read_sound
from gentok.interfaces import Tokenizer
from gentok.types import ABSENT, UNKNOWN, Condition, Frames, Raster, Tokens, TokenSpec

__all__ = ["KEEPS", "frames_of", "keep_mask", "known_tokens", "read_known"]

KEEPS = ("left-half", "right-half", "top-half", "bottom-half", "center", "border")


def read_known(path: str, spec: TokenSpec) -> Tensor:
    """The file to complete: an image [C, H, W] of the media's size, or a sound [C, T] at the model's rate, in [-1, 1]. Raises ValueError or
    OSError with a line."""
    if spec.modality == "audio":
        return read_sound(path, spec.sample_rate, spec.media_shape[0]).clamp(-1, 1)
    return read_picture(path, channels=spec.media_shape[0], size=spec.media_shape[1:])


def known_tokens(tokenizer: Tokenizer, condition: Condition, known: Tensor | None, keep: Any, frames: Tensor | None) -> Tokens | None:
    """What is known of the tokens to be sampled.

    Args:
        tokenizer: whose tokens they are. One that writes a part of the condition into its codes knows that part; with a sound too, the
            item begins with both.
        condition: of the rows to be sampled.
        known: float [C, ...], the image or sound to complete; None: none.
        keep: what stays of it: a region of an image (None: its left half), the first seconds of a sound (None: all).
        frames: int64 [n], how long each sound is to be.

    Returns:
        Tokens whose cells outside of what stays are UNKNOWN: one row, or one for each of `frames` where sounds differ in length; None where
        nothing is known.

    Raises:
        ValueError: `keep` or `frames` do not fit what is known.
    """
    spec, inner = tokenizer.spec, tokenizer.prompt_tokenizer
    if tokenizer.written_condition.parts:
        beginning = None
        if known is not None:
            whole = inner.encode(known[None])
            count = _kept_frames(known.shape[-1], keep, inner.spec, whole.codes.shape[2])
            beginning = Tokens(whole.codes[:, :, :count], inner.spec)
        return tokenizer.prompt(condition, beginning)
    if known is None:
        return None
    if isinstance(spec.grid, Frames):
        count = _kept_frames(known.shape[-1], keep, spec)
        if frames is not None and int(frames.min()) < count:
            raise ValueError(f"duration: a sample must be at least as long as what it keeps of `known`, {count / spec.grid.rate_hz:g} s")
        codes = tokenizer.encode(known[None]).codes[:, :, :count]
        begun = torch.full((1, spec.levels, spec.positions), UNKNOWN, dtype=torch.int64, device=codes.device)
        begun[:, ~spec.exists().to(codes.device)] = ABSENT
        begun[:, :, :count] = codes
        if frames is None:
            return Tokens(begun, spec)
        beyond = torch.arange(spec.positions, device=codes.device) >= frames.to(codes.device)[:, None]
        return Tokens(torch.where(beyond[:, None], ABSENT, begun), spec, frames)
    codes = tokenizer.encode(known[None]).codes
    return Tokens(codes.masked_fill(~keep_mask("left-half" if keep is None else keep, spec.grid).to(codes.device), UNKNOWN), spec)


def _kept_frames(samples: int, keep: Any, spec: TokenSpec, whole: int | None = None) -> int:
    """How many whole frames of a sound of so many samples are kept; `whole` where all of it is, None: those that are full of it."""
    if keep is None and whole is not None:
        return whole
    have, rate = samples / spec.sample_rate, spec.grid.rate_hz
    seconds = have if keep is None else _seconds(keep, "keep")
    if seconds > have + 0.5 / spec.sample_rate:
        raise ValueError(f"keep={keep}: `known` is {have:.2f} s long")
    count = int(seconds * rate + 1e-6) // spec.frame_multiple * spec.frame_multiple
    most = spec.positions if whole is None else whole
    if not 1 <= count <= most:
        raise ValueError(f"keep={keep}: that is {count} frames of {1 / rate:g} s, this model takes 1 to {most}: set keep=SECONDS")
    return count


def _seconds(value: Any, what: str) -> float:
    """1.5, '1.5' or '1.5s' -> 1.5. Raises ValueError with a line."""
    word = str(value).strip()
    try:
        seconds = float(word.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what}={value}: of sounds a time in seconds is expected, such as 1.0s")
    return seconds


def frames_of(duration: Any, n: int, spec: TokenSpec) -> Tensor | None:
    """Frames of each of n samples, int64 [n]: of `duration` in seconds, one or several in turn, or the model's longest item; None where
    tokens are no frames. Raises ValueError in a line."""
    if not isinstance(spec.grid, Frames):
        if duration is not None:
            raise ValueError(f"duration={duration}: these tokens are no frames of time but a {type(spec.grid).__name__.lower()}")
        return None
    if duration is None:
        return torch.full((n,), spec.positions, dtype=torch.int64)
    each = duration if isinstance(duration, Sequence) and not isinstance(duration, str) else [duration]
    several = spec.frame_multiple
    counts = torch.tensor([math.ceil(_seconds(value, "duration") * spec.grid.rate_hz / several - 1e-6) * several for value in each])
    if int(counts.max()) > spec.positions:
        raise ValueError(
            f"duration={duration}: this model makes up to {spec.positions / spec.grid.rate_hz:g} s ({spec.positions} frames), its longest "
            "training item"
        )
    return counts[torch.arange(n) % len(counts)]


def keep_mask(keep: str, grid: Any) -> Tensor:
    """bool [N]: the raster positions that `keep` names."""
    if not isinstance(grid, Raster):
        raise ValueError(f"keep={keep} names a region of a raster; these tokens lie on a {type(grid).__name__.lower()}")
    if keep not in KEEPS:
        raise ValueError(f"keep={keep}: choose one of {', '.join(KEEPS)}")
    y, x = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    inside = (y >= grid.h // 4) & (y < grid.h - grid.h // 4) & (x >= grid.w // 4) & (x < grid.w - grid.w // 4)
    masks = {
        "left-half": x < grid.w // 2,
        "right-half": x >= grid.w // 2,
        "top-half": y < grid.h // 2,
        "bottom-half": y >= grid.h // 2,
        "center": inside,
        "border": ~inside,
    }
    return masks[keep].flatten()
