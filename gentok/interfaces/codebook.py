"""What a codebook is: vectors to codes and back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gentok.interfaces.component import Component
from gentok.precision import values_known
from gentok.rng import RowRNG
from gentok.types import Grid, Quantized, Raster

__all__ = ["Codebook"]

_MODES = threading.Lock()
_encoding: WeakKeyDictionary[Codebook, list[Any]] = WeakKeyDictionary()
"""Of every codebook that encodes: in how many threads, and whether it was in training mode before the first."""


class Codebook(nn.Module, Component):
    """Vectors to codes and back; float32 inside, also under autocast. Generators of code vectors are handed a
    frozen one.

    Subclasses implement `forward`, `lookup`, `table`, `reset_parameters` and, where nearest codes exist,
    `nearest`; `gentok.codebooks.base` has classes that save most of the work. What every codebook guarantees,
    and tests/codebooks/test_codebook_contract.py checks: eval mode changes no buffer;
    `lookup(forward(z).codes) == forward(z).vectors`; `nearest(lookup(c)) == c` where `invertible` and rows
    differ; identical rows on every rank after every step; bfloat16 autocast uses as many codes as float32.

    Attributes:
        in_width: channels that `forward` takes: what the encoder must emit.
        width: D, channels of the vectors that `forward` and `lookup` return: what the decoder gets.
        dim: channels of the codebook's own space, between its projections where it has some.
        levels: K.
        vocab_sizes: V of each level.
        parts: named ranges of the channels (the halves of a dual codebook).
        projected: whether linear maps stand around the codebook's own space.
        invertible: whether `nearest` finds the codes of every sum of rows again.
        has_nearest: False where no nearest code exists; `nearest` then raises TypeError.
        nested_levels: whether the first k levels are a valid code for every k.
        strides: level k exists at positions n % strides[k] == 0; None: everywhere.
        multiple: frames that are coded together; a sound has a whole number of these.
        gradient_when_frozen: whether `forward` hands a gradient to the encoder although the codebook is in
            eval mode.
    """

    in_width: int
    width: int
    dim: int
    vocab_sizes: tuple[int, ...]
    parts: Mapping[str, slice] = {}
    projected: bool = False
    levels: int = 1
    invertible: bool = True
    has_nearest: bool = True
    nested_levels: bool = False
    strides: tuple[int, ...] | None = None
    multiple: int = 1
    gradient_when_frozen: ClassVar[bool] = True

    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """Quantizes.

        Args:
            z: float [B, in_width, M].
            n_levels: int64 [B], how many levels to use in each row, the first ones; None: all. The codes of
                the others are ABSENT, and they have no vectors, no losses and no statistics.
            rng: row-wise random numbers for everything random (level dropout, revival, sampled bits); None:
                nothing random happens.

        Returns:
            Quantized, whose vectors are straight-through to z.

        Raises:
            ValueError: z has another shape.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, z: Tensor, rng: RowRNG | None = None) -> Tensor:
        """The codes of z as in eval mode, without gradient: no buffer changes, and the mode is as before when the last thread is out.

        Args:
            z: float [B, in_width, M].
            rng: as of `forward`.

        Returns:
            int64 [B, K, N].

        Raises:
            ValueError: in eval mode, a number of z is NaN or infinite.
        """
        if not self.training and values_known(z) and not bool(z.isfinite().all()):
            row = int((~z.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"the vectors of row {row} of the batch, of which codes are to be made, are not finite: its media hold NaN or infinite "
                "numbers, or the tokenizer's weights are damaged or its precision is too low"
            )
        with _MODES:
            inside = _encoding.setdefault(self, [0, self.training])
            inside[0] += 1
            if inside[0] == 1 and inside[1]:
                self.eval()
        try:
            return self(z, rng=rng).codes
        finally:
            with _MODES:
                inside[0] -= 1
                if not inside[0]:
                    del _encoding[self]
                    if inside[1]:
                        self.train()

    def check_codes(self, codes: Tensor) -> None:
        """Raises ValueError where `codes` are not int64 [B, K, N], or beyond a level's vocabulary."""
        if codes.dim() != 3 or codes.shape[1] != self.levels or codes.dtype != torch.int64:
            raise ValueError(f"{type(self).__name__} takes codes int64 [B, {self.levels}, N]; got {codes.dtype} {tuple(codes.shape)}")
        beyond = codes >= torch.tensor(self.vocab_sizes, device=codes.device)[:, None]
        if values_known(codes) and bool(beyond.any()):
            b, k, n = beyond.nonzero()[0].tolist()
            raise ValueError(
                f"{type(self).__name__} has no row for code {int(codes[b, k, n])} at row {b}, level {k}, position {n}: "
                f"level {k} has ids 0..{self.vocab_sizes[k] - 1}"
            )

    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, width, M]; cells below 0 add nothing. Raises
        ValueError on another shape, and on a code beyond its level's vocabulary."""
        raise NotImplementedError

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """The codes whose lookup is nearest; of several levels greedily, coarse to fine, once what is given
        has been subtracted.

        Args:
            vectors: float [B, width, M], in the space that `lookup` returns.
            given: int64 [B, K, N]; only its UNKNOWN cells are filled, the others stay; None: all are UNKNOWN.

        Returns:
            int64 [B, K, N].

        Raises:
            TypeError: this codebook has no nearest code (see `has_nearest`).
            ValueError: there are too many rows to compare.
        """
        raise TypeError(f"{type(self).__name__} has no nearest code of a vector: take a codebook such as vq, lfq or residual")

    def unquantized(self, z: Tensor) -> Tensor:
        """What z is before its codes are chosen, in the space of the vectors: the nearer to a `lookup`, the surer are its codes.

        Args:
            z: float [B, in_width, M], as of `forward`.

        Returns:
            float32 [B, width, M], with gradient to z. No buffer changes.

        Raises:
            TypeError: rows of this codebook approximate no such vectors.
        """
        raise TypeError(f"{type(self).__name__} has no vectors that its rows approximate: take a codebook such as vq, fsq or residual")

    def table(self, level: int = 0) -> Tensor:
        """float32 [V_level, width]: the rows as `lookup` adds them, output projection applied. Raises
        ValueError where they are too many."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Fresh parameters and statistics, drawn from torch's global generator."""
        raise NotImplementedError

    def accumulate(self, codes: Tensor, scales: Sequence[int], own: bool = False) -> Tensor:
        """Vectors summed up to each scale, at the next scale's size, or with `own` at that scale's (pyramids
        alone; others raise TypeError)."""
        raise TypeError(f"{type(self).__name__} has one scale: accumulate needs a pyramid codebook")

    def grid(self, h: int, w: int) -> Grid:
        """Where the codes of a feature map of h x w cells lie (M = h * w, row by row). Raises ValueError
        where it does not fit."""
        return Raster(h, w)

    def scale_usage(self, codes: Tensor) -> Tensor | None:
        """codes int64 [B, K, N] -> float [scales], the share of the rows that each scale of a pyramid uses;
        None for others."""
        return None
