"""What watermarks share: cells get places in a key, from a start of their own for every item.

The key has n numbers (per id). Cell (level k, position p) of an item takes those of place (start + p K + k) mod n, where the start is
random in every item. So each cell has numbers of its own in an item of at most n cells, and two items seldom begin at the same place. A
detector knows neither the start nor what was cut off in front, and tries all n.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gentok.interfaces import Codebook, Component
from gentok.rng import RowRNG, uniform_of
from gentok.samplers.draws import Mark
from gentok.settings import PositiveInt
from gentok.types import TokenSpec
from gentok.watermarks.key import Key

__all__ = ["KeyMark", "PlacedWatermark", "Watermark", "gumbel_of"]

SHORTEST = 256


@dataclass(frozen=True)
class Watermark(Component, ABC):
    """A kind of watermark and its settings.

    Attributes:
        distortion_free: whether single items keep their distribution.
    """

    distortion_free: ClassVar[bool] = True

    def places(self, spec: TokenSpec) -> int:
        """n for items of a spec; 1 where a cell's numbers do not depend on its place."""
        return 1

    def groups(self, spec: TokenSpec, codebook: Codebook | None) -> Tensor | None:
        """int64 [K, V + 1]: the symbol that each id stands for, the end of items included; None: every id is its own. Raises ValueError
        where the codebook has none."""
        return None

    @abstractmethod
    def choose(self, logits: Tensor, seed: Tensor, place: Tensor, groups: Tensor | None, rng: RowRNG) -> Tensor:
        """Ids.

        Args:
            logits: float [b, ..., V].
            seed: int64 [], of the key.
            place: int64 [b, ...], in the key.
            groups: int64 [b, ..., V], the symbols of the ids, where there are some.
            rng: of these rows, for what the key leaves open.

        Returns:
            Tensor: int64 [b, ...].
        """

    @abstractmethod
    def cost(self, seeds: Tensor, place: Tensor, symbols: Tensor, vocab: int) -> Tensor:
        """How badly symbols fit a key: small ones are those of a marked item.

        Args:
            seeds: int64 [R, 1, 1], of several keys.
            place: int64 [n].
            symbols: int64 [U, 1].
            vocab: symbols that there are.

        Returns:
            Tensor: float64, broadcasts to [R, U, n].
        """

    def gumbel(self, seed: Tensor, place: Tensor, vocab: int) -> Tensor | None:
        """As `Mark.gumbel`, of places int64 [b, ...]."""
        return None


@dataclass(frozen=True)
class PlacedWatermark(Watermark):
    """A watermark whose numbers belong to places.

    Args:
        length: n, the places of the key. A longer one makes it rarer that items begin at the same place, and marks harder to find. None:
            the power of two of at least 256 that holds the longest item.

    Attributes:
        gap: a penalty of lost positions for `alignment.py`, in units of `cost`: about three of its standard deviations, small enough to
            pass over lost positions and large enough not to look for the best places one by one.
    """

    gap: ClassVar[float] = 3.0

    length: PositiveInt | None = None

    def places(self, spec: TokenSpec) -> int:
        if self.length is not None:
            return self.length
        n = SHORTEST
        while n < spec.positions * spec.levels:
            n *= 2
        return n


def gumbel_of(seed: Tensor, place: Tensor, symbols: int) -> Tensor:
    """float64 [..., symbols]: standard Gumbel numbers of places int64 [...]."""
    xi = uniform_of(seed, place[..., None], torch.arange(symbols, device=place.device))
    return -(-xi.log()).log()


class KeyMark(Mark):
    """A watermark with its key, for items of one spec.

    Args:
        watermark: its kind.
        key: the secret.
        spec: of the tokens.
        codebook: of their tokenizer, for a watermark that looks at its rows.

    Raises:
        ValueError: the watermark does not fit the tokens.
    """

    def __init__(self, watermark: Watermark, key: Key, spec: TokenSpec, codebook: Codebook | None = None):
        if not spec.vocab_sizes:
            raise ValueError("these are latents: a watermark is for tokens, whose ids it chooses")
        self.watermark, self.seed, self.levels, self.length = watermark, key.seed, spec.levels, watermark.places(spec)
        self.groups = watermark.groups(spec, codebook)
        self.vocab = spec.vocab if self.groups is None else int(self.groups.max()) + 1
        self.starts: Tensor | None = None

    def start(self, rng: RowRNG, positions: int) -> KeyMark:
        cells = positions * self.levels
        if isinstance(self.watermark, PlacedWatermark) and self.length < cells:
            raise ValueError(f"watermark.length={self.length}: items have up to {cells} cells, each of which needs a place of its own")
        started = object.__new__(type(self))
        started.__dict__.update(self.__dict__)
        numbers = rng.row_numbers
        starts = torch.zeros(int(numbers.max()) + 1 if len(numbers) else 0, dtype=torch.int64, device=rng.device)
        starts[numbers] = (rng.fork("watermark").uniform() * self.length).long()
        started.starts = starts
        return started

    def _place(self, rng: RowRNG, level: Tensor, position: Tensor, dims: int) -> Tensor:
        """int64 [b, ...] of `dims` axes: the cells' places in the key."""
        assert self.starts is not None
        start = self.starts[rng.row_numbers].view(-1, *[1] * (dims - 1))
        return (start + position.clamp(min=0) * self.levels + level.clamp(min=0)) % self.length

    def choose(self, logits: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> Tensor:
        place = self._place(rng, level, position, logits.dim() - 1)
        groups = None
        if self.groups is not None:
            groups = self.groups.to(logits.device)[level.clamp(min=0)][..., : logits.shape[-1]].expand(logits.shape)
        return self.watermark.choose(logits.double(), self._seed(logits), place, groups, rng)

    def gumbel(self, rng: RowRNG, level: Tensor, position: Tensor, vocab: int) -> Tensor | None:
        place = self._place(rng, level, position, level.dim())
        return self.watermark.gumbel(self._seed(place), place, vocab)

    def symbols(self, codes: Tensor) -> Tensor:
        """int64 [K, N]: the symbols of codes int64 [K, N] of one item; of cells below 0 anything."""
        if self.groups is None:
            return codes
        return self.groups.to(codes.device)[torch.arange(len(codes), device=codes.device)[:, None], codes.clamp(min=0)]

    def _seed(self, like: Tensor) -> Tensor:
        return torch.tensor(self.seed, device=like.device)
