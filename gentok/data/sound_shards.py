"""SoundShards: sounds in tar files of the webdataset convention: KEY.wav (.flac, .ogg, .mp3) with KEY.cls, KEY.json, KEY.txt.

The shards' form, their index and urls are those of gentok.data.shards; what becomes of items that cannot be read:
gentok.data.indexed_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

from gentok.data.manifest import class_list
from gentok.data.shards import list_shards
from gentok.data.sound_dataset import SOUNDS, SoundData
from gentok.interfaces import LocalPath

__all__ = ["SoundShards"]


class SoundShards(SoundData, id="data/sound_shards"):
    """media_shape (channels, samples of the longest item), sample_rate; train and held_out over the items of tar files.

    shards, held_out, label, caption, classes, captions, caption_length, index: as of gentok.data.shards.Shards. sample_rate, channels,
    crop, longest, normalize, max_broken, split_seed, crop_seed, in_memory: as of gentok.data.sound_folder.SoundFolder. kind: what its sets
    are called. Raises FileNotFoundError, OSError or ValueError with a line.
    """

    def __init__(
        self,
        shards: LocalPath | Sequence[LocalPath],
        held_out: float | LocalPath | Sequence[LocalPath] = 0.05,
        sample_rate: int = 16000,
        channels: int = 1,
        crop: float | None = 1.0,
        longest: float | None = None,
        normalize: str | None = None,
        label: str | None = None,
        caption: str = "txt",
        classes: bool | Sequence[str] | None = None,
        captions: str | None = None,
        caption_length: int = 128,
        max_broken: float = 0.01,
        split_seed: int = 0,
        crop_seed: int = 0,
        in_memory: bool = False,
        index: LocalPath | None = None,
        kind: str = "sound_shards",
    ):
        listing, held_out = list_shards(
            shards, held_out, SOUNDS, label=label, classes=classes, caption=caption, captions=captions, folder=index
        )
        super().__init__(
            kind, listing, held_out, sample_rate=sample_rate, channels=channels, crop=crop, longest=longest, normalize=normalize,
            max_broken=max_broken, split_seed=split_seed, crop_seed=crop_seed, classes=class_list(classes),
            captions=captions is not None, caption_length=caption_length, in_memory=in_memory,
        )  # fmt: skip
