"""Packages of measures that are installed apart: imported where they are used, with one line where one is missing; and waves for them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["package", "mono", "rows"]


def package(name: str, install: str, what: str) -> Any:
    """The module `name`. Raises ImportError with a line that says how it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs the package {error.name or name}: pip install {install}") from error


def mono(media: Tensor, sample_rate: int, rate: int) -> Tensor:
    """media float [B, C, T] -> float32 [B, T'] on the CPU: the mean of the channels at `rate` Hz (torchaudio's windowed sinc)."""
    if media.dim() != 3:
        raise ValueError(f"measures of speech take waves [B, C, T]; got {tuple(media.shape)}")
    wave = media.detach().float().mean(1).cpu()
    if sample_rate == rate:
        return wave
    package("torchaudio", "torchaudio", f"changing {sample_rate} Hz to {rate} Hz")
    return importlib.import_module("torchaudio.functional").resample(wave, sample_rate, rate)


def rows(media: Tensor, sample_rate: int, rate: int, lengths: Tensor | None = None) -> Iterator[Any]:
    """numpy float32 [T'] of each row, cut at its length before it is resampled: a row is in a batch what it is alone."""
    ends = [media.shape[-1]] * len(media) if lengths is None else torch.as_tensor(lengths).tolist()
    if len(ends) != len(media) or any(not 1 <= n <= media.shape[-1] for n in ends):
        raise ValueError(f"lengths must be {len(media)} numbers of samples from 1 to {media.shape[-1]}; got {ends}")
    for row, n in zip(media.split(1), ends, strict=True):
        yield mono(row[..., :n], sample_rate, rate)[0].numpy()
