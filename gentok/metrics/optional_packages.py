"""Packages of measures that are installed apart: imported where they are used, a one-line error where one is
missing; and waves for them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["package", "rows"]


def package(name: str, install: str, what: str) -> Any:
    """The module `name`.

    Args:
        name: dotted.
        install: what follows "pip install".
        what: what needs it.

    Raises:
        ImportError: with a line that says how it is installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs the package {error.name or name}: pip install {install}") from error


def rows(media: Tensor, sample_rate: int, rate: int, lengths: Tensor | None = None) -> Iterator[Any]:
    """Each row as such packages take it, cut at its length before it is resampled: a row gives in a batch
    what it gives alone.

    Args:
        media: float [B, C, T].
        sample_rate: Hz of the media.
        rate: Hz of the rows (torchaudio's windowed sinc).
        lengths: int64 [B] in samples; None: all of T.

    Yields:
        numpy float32 [T'] on the CPU, the mean of the channels.

    Raises:
        ValueError: the media or the lengths have another shape.
    """
    if media.dim() != 3:
        raise ValueError(f"measures of speech take waves [B, C, T]; got {tuple(media.shape)}")
    ends = [media.shape[-1]] * len(media) if lengths is None else torch.as_tensor(lengths).tolist()
    if len(ends) != len(media) or any(not 1 <= n <= media.shape[-1] for n in ends):
        raise ValueError(f"lengths must be {len(media)} numbers of samples from 1 to {media.shape[-1]}; got {ends}")
    for row, n in zip(media, ends):
        wave = row[None, :, :n].detach().float().mean(1).cpu()
        if sample_rate != rate:
            resampling = package("torchaudio.functional", "torchaudio", f"changing {sample_rate} Hz to {rate} Hz")
            wave = resampling.resample(wave, sample_rate, rate)
        yield wave[0].numpy()
