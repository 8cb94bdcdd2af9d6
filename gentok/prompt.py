"""What a user gives a sample to begin with: an image of which a region stays, or a sound whose first seconds
stay and a duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.image_files import read_image
from gentok.data.sound_files import FullScale, read_sound
from gentok.errors import counted
from gentok.interfaces import Tokenizer
from gentok.types import UNKNOWN, Condition, Frames, Latents, Raster, Tokens, TokenSpec

__all__ = ["KEEPS", "default_keep", "frames_of", "keep_mask", "known_tokens", "read_keep", "read_known"]

KEEPS = ("left-half", "right-half", "top-half", "bottom-half", "center", "border")


def read_known(path: str, tokenizer: Tokenizer) -> Tensor:
    """The file to complete.

    Args:
        path: of an image or a sound.
        tokenizer: the model's.

    Returns:
        Tensor: an image [C, H, W] of the media's size, or a sound [C, T] at the model's rate, in [-1, 1]: as much
            of its beginning as the model can keep; or the codes int64 [n] of a drawing.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    spec = tokenizer.spec
    if tokenizer.draws:
        return tokenizer.read_drawing(path)
    channels, *size = spec.media_shape or (1,)
    if spec.modality == "audio":
        sound = read_sound(path, spec.sample_rate, channels, samples=_longest_known(tokenizer))
        return FullScale()(sound, str(path))
    return read_image(path, channels=channels, size=size)


def default_keep(tokenizer: Tokenizer) -> str:
    """What stays of what is known where nothing is said, in words."""
    return "the first half of the commands" if tokenizer.draws else "all" if tokenizer.spec.modality == "audio" else "left-half"


def _longest_known(tokenizer: Tokenizer) -> int | None:
    """Samples of a known sound that are encoded at most: the model's longest item, and a second that its last
    frames may depend on. None: all."""
    spec = tokenizer.prompt_tokenizer.spec
    positions = tokenizer.spec.grid.positions
    if positions is None or not isinstance(spec.grid, Frames) or spec.sample_rate is None:
        return None
    return math.ceil((positions / spec.grid.rate_hz + 1) * spec.sample_rate)


def known_tokens(
    tokenizer: Tokenizer, condition: Condition, known: Tensor | None, keep: Any, frames: Tensor | None
) -> Tokens | Latents | None:  # fmt: skip
    """What is known of the tokens to be sampled.

    Args:
        tokenizer: whose tokens they are. One that writes a part of the condition into its codes knows that
            part; with a sound too, the item begins with both.
        condition: of the rows to be sampled.
        known: float [C, ...], the image or sound to complete, or the codes int64 [n] of a drawing; None: none.
        keep: what stays of it: commands of a drawing (Tokenizer.prompt_drawing), a region or a mask of an image
            (`keep_mask`; None: its left half), the first seconds of a sound (None: all).
        frames: int64 [n], how long each sound is to be.

    Returns:
        Tokens: UNKNOWN in the cells outside of what stays: one row, or one for each of `frames` where sounds
            differ in length. Latents of a tokenizer without a codebook, NaN there. None where nothing is known.

    Raises:
        ValueError: `keep` or `frames` do not fit what is known.
    """
    spec = tokenizer.spec
    if keep is not None and known is None:
        raise ValueError(f"keep={keep} says what stays of `known`, and nothing is known: set known=FILE, or leave keep out")
    if tokenizer.draws:
        return None if known is None else tokenizer.prompt_drawing(known, keep)
    longest = _longest_known(tokenizer)
    cut = known is not None and longest is not None and known.shape[-1] >= longest
    if known is not None and cut:
        known = known[..., :longest]
    if tokenizer.written_condition.parts:
        return tokenizer.prompt(condition, None if known is None else _beginning(tokenizer.prompt_tokenizer, known, keep, cut, whole=True))
    if known is None:
        return None
    if not isinstance(spec.grid, Frames):
        dropped = ~keep_mask("left-half" if keep is None else keep, spec.grid)
        found = tokenizer.encode(known[None])
        if isinstance(found, Latents):
            return Latents(found.values.masked_fill(dropped.to(found.values.device), math.nan), spec)
        return Tokens(found.codes.masked_fill(dropped.to(found.codes.device), UNKNOWN), spec)
    kept = _beginning(tokenizer, known, keep, cut).codes
    count = kept.shape[2]
    if frames is not None and int(frames.min()) < count:
        raise ValueError(f"duration: a sample must be at least as long as what it keeps of `known`, {count / spec.grid.rate_hz:g} s")
    tokens = Tokens.unknown(spec, 1 if frames is None else len(frames), frames, kept.device)
    tokens.codes[:, :, :count] = kept
    return tokens


def _beginning(tokenizer: Tokenizer, known: Tensor, keep: Any, cut: bool, whole: bool = False) -> Tokens:
    """The tokens of the first `keep` seconds of a sound. None: all of it where it is `whole`, else those
    frames that are full of it. `cut`: there was more of it than the model can keep."""
    spec, samples = tokenizer.spec, known.shape[-1]
    if whole:
        codes = _encoded(tokenizer, known)
        count = codes.shape[2] if keep is None else _kept_frames(samples, keep, spec, codes.shape[2], cut)
    else:
        count = _kept_frames(samples, keep, spec, spec.positions, cut)
        codes = _encoded(tokenizer, known)
    return Tokens(codes[:, :, :count], spec)


def _encoded(tokenizer: Tokenizer, known: Tensor) -> Tensor:
    """int64 [1, K, N]: the codes of one image or sound. Raises ValueError where there are none."""
    tokens = tokenizer.encode(known[None])
    if not isinstance(tokens, Tokens):
        raise ValueError(f"known: {type(tokenizer).__name__} encodes to latents, of which no part can be kept")
    return tokens.codes


def _kept_frames(samples: int, keep: Any, spec: TokenSpec, most: int, cut: bool) -> int:
    """How many whole frames are kept of a sound of so many samples, at most `most`."""
    if not isinstance(spec.grid, Frames) or spec.sample_rate is None:
        raise ValueError(f"keep={keep}: these tokens are no frames of time")
    available, rate = samples / spec.sample_rate, spec.grid.rate_hz
    seconds = available if keep is None else _seconds(keep, "keep")
    if seconds > available + 0.5 / spec.sample_rate and not cut:
        raise ValueError(f"keep={keep}: `known` is {available:.2f} s long")
    count = int(seconds * rate + 1e-6) // spec.frame_multiple * spec.frame_multiple
    if not 1 <= count <= most:
        raise ValueError(f"keep={keep}: that is {counted(count, 'frame')} of {1 / rate:g} s, 1 to {most} are possible: set keep=SECONDS")
    return count


def _seconds(value: Any, name: str) -> float:
    """1.5, '1.5' or '1.5s' -> 1.5."""
    try:
        seconds = float(str(value).strip().removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name}={value}: of sounds a time in seconds is expected, such as 1.0s")
    return seconds


def frames_of(duration: Any, n: int, spec: TokenSpec) -> Tensor | None:
    """How many frames each sample has.

    Args:
        duration: in seconds, one or several in turn; None: the model's longest item.
        n: samples.
        spec: the model's tokens.

    Returns:
        Tensor: int64 [n]; None where tokens are not frames of time.

    Raises:
        ValueError: a duration is too long or not positive, or the tokens are not frames.
    """
    if not isinstance(spec.grid, Frames):
        if duration is not None:
            raise ValueError(f"duration={duration}: these tokens are no frames of time but a {type(spec.grid).__name__.lower()}")
        return None
    if duration is None:
        return torch.full((n,), spec.positions, dtype=torch.int64)
    each = duration if isinstance(duration, Sequence) and not isinstance(duration, str) else [duration]
    multiple = spec.frame_multiple
    counts = torch.tensor([math.ceil(_seconds(value, "duration") * spec.grid.rate_hz / multiple - 1e-6) * multiple for value in each])
    if int(counts.max()) > spec.positions:
        raise ValueError(
            f"duration={duration}: this model makes up to {spec.positions / spec.grid.rate_hz:g} s ({spec.positions} frames), its longest "
            "training item"
        )
    return counts[torch.arange(n) % len(counts)]


def keep_mask(keep: str | Tensor, grid: Any) -> Tensor:
    """The positions of a region of the raster.

    Args:
        keep: one of KEEPS; or a mask of the image, [H, W] of at least a pixel per cell, bool or float in [0, 1]: a cell stays where all of
            its pixels are set.
        grid: of the tokens.

    Returns:
        Tensor: bool [N].

    Raises:
        ValueError: there is no such region, or the tokens lie on no raster.
    """
    if not isinstance(grid, Raster):
        what = f"keep={keep} names" if isinstance(keep, str) else "a mask is"
        raise ValueError(f"{what} a region of a raster; these tokens lie on a {type(grid).__name__.lower()}")
    if isinstance(keep, Tensor):
        if keep.dim() != 2 or keep.shape[0] < grid.h or keep.shape[1] < grid.w:
            raise ValueError(f"keep: a mask is [H, W] of at least a pixel for each of {grid.h} x {grid.w} cells; got {tuple(keep.shape)}")
        holes = torch.nn.functional.adaptive_max_pool2d((keep.float() < 0.5).float()[None], (grid.h, grid.w))
        return (holes[0] == 0).flatten()
    if keep not in KEEPS:
        raise ValueError(f"keep={keep}: choose one of {', '.join(KEEPS)}, or an image file, white where the image stays")
    y, x = torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    center = (y >= grid.h // 4) & (y < grid.h - grid.h // 4) & (x >= grid.w // 4) & (x < grid.w - grid.w // 4)
    masks = (x < grid.w // 2, x >= grid.w // 2, y < grid.h // 2, y >= grid.h // 2, center, ~center)
    return masks[KEEPS.index(keep)].flatten()


def read_keep(keep: str | float | None, tokenizer: Tokenizer) -> Any:
    """`keep` as `known_tokens` takes it: of an image, the path of a mask file becomes the mask, float [H, W], 1 where it is white.

    Raises:
        ValueError: the file cannot be read.
    """
    if tokenizer.spec.modality == "audio" or not isinstance(keep, str) or keep in KEEPS or not Path(keep).is_file():
        return keep
    return (read_image(keep, channels=1)[0] + 1) / 2
