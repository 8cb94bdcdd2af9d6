"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 photographs of 32x32 in ten classes, from webdataset shards of your own.

Members KEY.jpg or KEY.png and KEY.cls, the class as a number 0..9 or by name. Kept in memory as 184 MB of uint8, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from gentok.data.shards import Shards
from gentok.interfaces import LocalPath
from gentok.settings import Fraction
from gentok.types import ClassSpec, ConditionSpec

__all__ = ["CIFAR10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(Shards, id="data/cifar10"):
    """The two sets.

    Args:
        shards: those of Shards.
        held_out: usually the test set's shard.
        in_memory, max_broken, index: see ImageOptions and ShardOptions.
    """

    media_shape = (3, 32, 32)
    condition_spec = ConditionSpec((("class", ClassSpec(CLASSES)),))

    def __init__(
        self,
        shards: LocalPath | Sequence[LocalPath],
        held_out: float | LocalPath | Sequence[LocalPath],
        in_memory: bool = True,
        max_broken: Fraction = 0.01,
        index: LocalPath | None = None,
    ):
        super().__init__(
            shards, held_out=held_out, size=32, resize="none", label="cls", classes=CLASSES, in_memory=in_memory, max_broken=max_broken,
            index=index,
        )  # fmt: skip
