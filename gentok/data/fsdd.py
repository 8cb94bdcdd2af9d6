"""Free Spoken Digit Dataset (Jackson, CC BY-SA 4.0): 3,000 recordings of ten digits by six people, from webdataset shards of your own.

Members KEY.wav, recorded at 8 kHz, and KEY.json with the fields digit, text, speaker and take. At a higher rate than that there is nothing
above 4 kHz: `band_limit` says so, and what compares spectra should not ask for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gentok.data.sound_shards import SoundShards
from gentok.interfaces import LocalPath
from gentok.settings import Fraction, PositiveFloat, PositiveInt
from gentok.types import ClassSpec, ConditionSpec

__all__ = ["FSDD", "WORDS"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Names of the classes; a model understands condition=seven and condition=7."""


class FSDD(SoundShards, id="data/fsdd"):
    """The two sets: the class is the digit, its word the text where captions=ids.

    Args:
        shards: those of SoundShards.
        held_out: usually the test set's shard (takes 0 to 4 of every digit and speaker).
        sample_rate, crop, longest, normalize, max_broken, in_memory: see SoundOptions.
        captions, index: see ShardOptions.
    """

    kind = "fsdd"
    condition_spec = ConditionSpec((("class", ClassSpec(WORDS)),))

    def __init__(
        self,
        shards: LocalPath | Sequence[LocalPath],
        held_out: float | LocalPath | Sequence[LocalPath],
        sample_rate: PositiveInt = 16000,
        crop: PositiveFloat | None = 0.5,
        longest: PositiveFloat | None = None,
        normalize: str | None = None,
        captions: Literal["ids"] | None = None,
        max_broken: Fraction = 0.01,
        in_memory: bool = True,
        index: LocalPath | None = None,
    ):
        super().__init__(
            shards, held_out=held_out, sample_rate=sample_rate, crop=crop, longest=longest, normalize=normalize, label="json.digit",
            caption="json.text", classes=WORDS, captions=captions, caption_length=16, max_broken=max_broken, in_memory=in_memory,
            index=index,
        )  # fmt: skip
