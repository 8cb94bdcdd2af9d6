"""Cached trajectories: what a teacher made of noise, in the files of the token cache (gentok/data/token_cache.py).

The items of a set are "encoded" by a teacher that looks at their conditions and at noise alone: view v of item i is the teacher's item of
that condition and of noise (seed, i, v). The noise is a pure function of these numbers, so the file holds codes only, and it is made again
when they are read. The file's header names the teacher and how its noise became codes; those of another teacher have another name, and are
refused under this one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.data.datasets import locate
from gentok.data.token_cache import item_rng
from gentok.data.token_dataset import TokenDataset
from gentok.errors import FormatError
from gentok.interfaces import MediaDataset
from gentok.rng import RowRNG
from gentok.types import Batch, ConditionSpec, Tokens, Trajectories

__all__ = ["TaughtItems", "TeacherCodes", "TrajectoryDataset"]

_KEY = "trajectories"
"""Of a file's description."""


class TaughtItems(MediaDataset):
    """A set of which the conditions alone count, described so that its file is one of this teacher.

    Args:
        data: the set.
        about: says which teacher it is, and how it goes from noise to codes; it can be written as JSON.
    """

    def __init__(self, data: MediaDataset, about: Mapping[str, Any]):
        self.data, self.media_shape, self.condition_spec = data, data.media_shape, data.condition_spec
        self.description = {**data.description, _KEY: dict(about)}

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        return self.data.__getitems__(draws)


class TeacherCodes:
    """A teacher in the place of the tokenizer of `encode_set`.

    Args:
        model: a distilled generator with its teacher.
        split: the name of the set; sets of other names have other noise.
    """

    draws = True
    written_condition = ConditionSpec()

    def __init__(self, model: Any, split: str):
        self.model, self.spec, self.split = model, model.spec, split

    def to(self, device: torch.device | str) -> TeacherCodes:
        """Moves the model; returns itself."""
        self.model.to(device)
        return self

    def encode_batch(self, batch: Batch, rng: RowRNG) -> Tokens:
        """The teacher's items of the conditions of a batch, of noise from `rng`."""
        lengths = None if batch.lengths is None else torch.full_like(batch.lengths, self.spec.positions)
        unknown = Tokens.unknown(self.spec, len(batch.index), lengths, rng.device)
        return self.model.trajectories(unknown, batch.condition, rng.fork(self.split))


class TrajectoryDataset(TokenDataset):
    """The cached trajectories of one split: draws -> Batch(media=None, tokens=Trajectories, condition, index).

    Args:
        path: the file.
        model: the generator that made it.
        about: as of TaughtItems.
        split: as of TeacherCodes.
        seed: of the noise, and of the order of the views.

    Raises:
        FileNotFoundError: there is no file.
        FormatError: it is damaged, or of another teacher.
    """

    def __init__(self, path: str | os.PathLike[str], model: Any, about: Mapping[str, Any], split: str, seed: int = 0):
        super().__init__(path, model.spec, seed)
        self.shape, self.split = (model.spec.positions, model.channels), split
        if self.description.get(_KEY) != dict(about):
            raise FormatError(
                f"{self.path} holds trajectories of another teacher ({self.description.get(_KEY)}; this one is {dict(about)}): delete it, "
                "and it is made anew"
            )

    def __getitems__(self, draws: Sequence[int]) -> Batch:
        batch = super().__getitems__(draws)
        assert isinstance(batch.tokens, Tokens)
        index, epoch = locate(draws, len(self))
        noise = self.noise(self.numbers(index.tolist()), self.view_of(index, epoch))
        batch.tokens = Trajectories(batch.tokens.codes, self.spec, batch.tokens.lengths, noise)
        return batch

    def noise(self, number: Tensor, view: Tensor) -> Tensor:
        """What the teacher was given: int64 [B], items' numbers in the set, and their views -> float64 [B, N, C]."""
        out = torch.zeros(len(number), *self.shape, dtype=torch.float64)
        for v in view.unique().tolist():
            out[view == v] = item_rng(self.seed, number[view == v], v).fork("encoding").fork(self.split).normal(*self.shape)
        return out
