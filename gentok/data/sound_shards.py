"""SoundShards: sounds in tar files of the webdataset convention: KEY.wav (.flac, .ogg, .mp3) with KEY.cls, KEY.json, KEY.txt.

The shards' form, their index and urls are those of gentok.data.shards; what becomes of items that cannot be read:
gentok.data.indexed_dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from gentok.data.shards import ShardOptions
from gentok.data.sound_dataset import SoundData, SoundOptions
from gentok.interfaces import LocalPath

__all__ = ["SoundShards"]


class SoundShards(SoundData, id="data/sound_shards"):
    """The sounds of tar files; arguments as of gentok.data.shards.Shards, with SoundOptions."""

    kind = "sound_shards"

    def __init__(self, shards: LocalPath | Sequence[LocalPath], **options: Annotated[Any, ShardOptions, SoundOptions]):
        super().__init__(shards, ShardOptions, options)
