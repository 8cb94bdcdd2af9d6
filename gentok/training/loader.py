"""Batches of draws: an endless, shuffled, reproducible order of a set's items, split over processes.

Epoch e's order is a permutation that depends on (seed, e) alone; the stream of epochs is cut into full batches, so that no batch is short
and every item occurs once per epoch. Draw number = epoch * len(set) + item (see gentok.data.datasets). Of items of unequal length, windows
of several batches may be sorted by it and cut into batches anew, in a random order: rows of a batch are then padded little.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

from gentok.data.datasets import identity
from gentok.rng import RowRNG

__all__ = ["DrawSampler", "TimedLoader", "training_loader", "held_out_loader"]


class DrawSampler(Sampler[list[int]]):
    """Yields this process's share of each global batch, without end.

    Args:
        length: items of the set.
        batch_size: over all processes, divisible by `world`.
        seed: of the order.
        rank: number of this process.
        world: processes.
        start: global batches already consumed.
        sizes: of each item, by which windows of batches are sorted.
        window: batches that are sorted together; 1: none are.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, *, rank: int = 0, world: int = 1, start: int = 0,
        sizes: Sequence[int] | None = None, window: int = 1,
    ):  # fmt: skip
        if length < 1:
            raise ValueError("the training set is empty")
        if batch_size > length:
            raise ValueError(
                f"batch_size={batch_size} is larger than the training set of {length} items: set batch_size to at most {length}"
            )
        if batch_size % world:
            raise ValueError(f"batch_size={batch_size} must be a multiple of the {world} processes")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        self.sizes, self.window = sizes, 1 if sizes is None else window

    def _order(self, epoch: int) -> list[int]:
        return (RowRNG.of(self.seed, [epoch]).permutation(self.length)[0] + epoch * self.length).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world
        number, skipped = divmod(self.start, self.window)
        drawn = self.window * self.batch_size
        epoch, offset = divmod(number * drawn, self.length)
        order = self._order(epoch)
        while True:
            while len(order) < offset + drawn:
                epoch += 1
                order = order[offset:] + self._order(epoch)
                offset = 0
            for batch in self._batches(order[offset : offset + drawn], number)[skipped:]:
                yield batch[self.rank * share : (self.rank + 1) * share]
            offset, number, skipped = offset + drawn, number + 1, 0

    def _batches(self, draws: list[int], number: int) -> list[list[int]]:
        """The batches of a window, which is the number-th."""
        if self.sizes is None or self.window == 1:
            return [draws]
        draws = sorted(draws, key=lambda draw: self.sizes[draw % self.length])
        turns = RowRNG.of(self.seed, [number]).fork("window").permutation(self.window)[0].tolist()
        return [draws[i * self.batch_size : (i + 1) * self.batch_size] for i in turns]


class TimedLoader(DataLoader):
    """A DataLoader that knows for how long its reader has waited: `waited`, in seconds."""

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            yield batch


def training_loader(
    data: Any, batch_size: int, seed: int, workers: int = 0, rank: int = 0, world: int = 1, start: int = 0, window: int = 1
) -> DataLoader:  # fmt: skip
    """An endless loader of Batches.

    Args:
        data: the training set.
        batch_size, seed, rank, world, start, window: as of DrawSampler.
        workers: processes that read.
    """
    if workers < 0:
        raise ValueError(f"trainer.workers={workers}: 0 (load in the training process) or more")
    sizes = getattr(data, "sizes", None) if window > 1 else None
    sampler = DrawSampler(len(data), batch_size, seed, rank=rank, world=world, start=start, sizes=sizes, window=window)
    return TimedLoader(data, batch_sampler=sampler, collate_fn=identity, num_workers=workers, persistent_workers=workers > 0)


def held_out_loader(data: Any, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1) -> DataLoader:
    """Every item once, in order; process r of w takes the batches r, r + w, ... With fewer items than processes each takes all.

    Args:
        data: the held-out set.
        batch_size: over all processes.
        workers: processes that read.
        rank: number of this process.
        world: processes.
    """
    size = max(1, min(batch_size, len(data) // world))
    batches = [list(range(i, min(i + size, len(data)))) for i in range(0, len(data), size)]
    own = batches[rank::world] if len(data) >= world else batches
    return DataLoader(data, batch_sampler=own, collate_fn=identity, num_workers=workers)
