"""Random numbers by row: `RowRNG` gives every row of a batch its own stream, so that a row alone draws what
it draws in a batch.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): the i-th
word of a stream is mix(start + i * gamma), computed on int64 tensors for all rows at once. It is a pure
function of (seed, i): the same on every device, for every batch size and on every number of processes.
Doubles have 52 random bits and lie strictly inside (0, 1), so that neither log(u) nor log(1 - u) overflows
and the tail of an exponential reaches 36.7 (float32 random numbers stop at 16.6 and truncate rare tokens).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RowRNG", "uniform_of"]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


_CUT = frozenset(("adversaries", "encoding", "generator", "held out", "held_out", "tokenizer"))
"""Tags of which 7 bytes count, as once of all: results that were published were made with them."""


def _number_of(tag: int | str) -> int:
    """What a tag of `fork` stands for: texts of up to 7 bytes are below 2^56, longer ones a hash of 2^62 and more."""
    if isinstance(tag, int):
        return tag
    text = tag.encode()
    if len(text) <= 7 or tag in _CUT:
        return int.from_bytes(text[:7], "little")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 2 | 1 << 62


def uniform_of(*names: Tensor) -> Tensor:
    """Random numbers by name instead of by turn: each is a pure function of its names, and of no stream.

    Args:
        names: int64 tensors that broadcast, such as a seed, a place and an id; their order matters.

    Returns:
        Tensor: float64, strictly inside (0, 1).
    """
    word, *others = names
    word = _mix(word + _GAMMA)
    for name in others:
        word = _mix(word + (name + 1) * _GAMMA)
    return _unit(word)


def _unit(words: Tensor) -> Tensor:
    """64 random bits each -> float64, strictly inside (0, 1)."""
    return (_shift(words, 12).double() + 0.5) * 2.0**-52


class RowRNG:
    """One stream of float64 random numbers per row.

    Every draw advances every row by the same number of words; `rows` gives a view on some rows that advances
    those alone, `fork` an independent stream for another purpose.

    Args:
        seeds: int64 [B], one seed per row.
        device: where the numbers are made; None: where `seeds` are.

    Raises:
        ValueError: `seeds` has not one axis.
    """

    def __init__(self, seeds: Tensor | Sequence[int], device: torch.device | str | None = None):
        seeds = torch.as_tensor(seeds, dtype=torch.int64, device=device)
        if seeds.dim() != 1:
            raise ValueError(f"RowRNG takes one seed per row, int64 [B]; got shape {tuple(seeds.shape)}")
        self._start, self._drawn = _mix(seeds + _GAMMA), torch.zeros_like(seeds)
        self._whole: RowRNG | None = None  # of a view: what it is a view on, and which rows these are
        self._index: Tensor | None = None

    @staticmethod
    def _made(start: Tensor, drawn: Tensor) -> RowRNG:
        rng = RowRNG.__new__(RowRNG)
        rng._start, rng._drawn, rng._whole, rng._index = start, drawn, None, None
        return rng

    @classmethod
    def of(cls, seed: int, index: Tensor | Sequence[int], step: int = 0) -> RowRNG:
        """The streams that training and sampling use.

        Args:
            seed: of the run.
            index: int64 [B], the number of each row's item in the whole set or among all samples.
            step: of the training.

        Returns:
            RowRNG: one stream per item.
        """
        index = torch.as_tensor(index, dtype=torch.int64)
        word = _mix(_mix(torch.tensor([seed], dtype=torch.int64, device=index.device) + _GAMMA) + _signed(step * _GAMMA % (1 << 64)))
        return cls(_mix(word + index * _M1))

    @classmethod
    def concat(cls, streams: Sequence[RowRNG]) -> RowRNG:
        """The rows of several, one after the other, from where they are now. Draws there do not advance these."""
        return cls._made(torch.cat([one._start for one in streams]), torch.cat([one._count for one in streams]))

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return len(self._start)

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self._start.device

    @property
    def row_numbers(self) -> Tensor:
        """int64 [B]: which rows these are of the RowRNG that the first view was taken of."""
        return torch.arange(self.batch, device=self.device) if self._index is None else self._index

    @property
    def _count(self) -> Tensor:
        """int64 [B]: the words that each row has drawn, here or through another view."""
        return self._drawn if self._whole is None else self._whole._drawn[self._index]

    def rows(self, index: Tensor) -> RowRNG:
        """A view on some rows, whose draws advance these rows and no other, here and in all other views.

        Args:
            index: int64 [b] or bool [B].

        Returns:
            RowRNG: of b rows.
        """
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        view = self._made(self._start[index], self._drawn)
        view._whole, view._index = self._whole or self, self.row_numbers[index]
        return view

    def fork(self, tag: int | str) -> RowRNG:
        """An independent stream of the same rows, for another purpose. It does not advance this one.

        A text stands for a number (the empty one for 0): give one parent numbers or texts, not both.

        Args:
            tag: what the stream is for, a number in [0, 2^63) or a text.

        Returns:
            RowRNG: of B rows, at its beginning. It also depends on how far this one has advanced.
        """
        start = _mix(self._start + self._count * _GAMMA ^ _mix(torch.tensor(_number_of(tag), device=self.device) * _M2 + 1))
        return self._made(start, torch.zeros_like(self._count))

    def to(self, device: torch.device | str) -> RowRNG:
        """The same streams on another device, from where they are now. Draws there do not advance this
        one."""
        return self._made(self._start.to(device), self._count.to(device))

    def words(self, *shape: int) -> Tensor:
        """int64 [B, *shape]: 64 random bits each."""
        n, count = math.prod(shape), self._count
        out = _mix(self._start[:, None] + (count[:, None] + torch.arange(1, n + 1, device=self.device)) * _GAMMA)
        if self._whole is None:
            self._drawn = self._drawn + n
        else:
            self._whole._drawn = self._whole._drawn.index_put((self._index,), count + n)
        return out.reshape(self.batch, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """float64 [B, *shape], strictly inside (0, 1)."""
        return _unit(self.words(*shape))

    def exponential(self, *shape: int) -> Tensor:
        """float64 [B, *shape], rate 1."""
        return -torch.log(self.uniform(*shape))

    def gumbel(self, *shape: int) -> Tensor:
        """float64 [B, *shape], standard Gumbel."""
        return -torch.log(self.exponential(*shape))

    def normal(self, *shape: int) -> Tensor:
        """float64 [B, *shape], standard normal (Box and Muller)."""
        u = self.uniform(2, *shape)
        return torch.sqrt(-2.0 * torch.log(u[:, 0])) * torch.cos(2.0 * math.pi * u[:, 1])

    def permutation(self, n: int) -> Tensor:
        """int64 [B, n]: a uniform permutation of 0 .. n - 1 per row."""
        return self.uniform(n).argsort(1)
