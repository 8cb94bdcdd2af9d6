"""SoundFolder: your own sounds. A folder of WAV, FLAC, OGG and MP3 files; where all of them lie in sub-folders, those are the classes.

What becomes of files that cannot be read: see gentok.data.indexed_dataset; how waves leave the set: gentok.data.sound_dataset.
"""

from __future__ import annotations

import os

from gentok.data.folder import list_folders
from gentok.data.sound_dataset import SOUNDS, SoundData
from gentok.interfaces import LocalPath

__all__ = ["SoundFolder"]


class SoundFolder(SoundData, id="data/sound_folder"):
    """media_shape (channels, samples of the longest item), sample_rate; train and held_out over the files of `path`, sub-folders included.

    sample_rate: Hz that the model hears; files of another are resampled. channels: 1 mixes down, 2 is stereo. crop: seconds of the piece
    that training sees of an item, begun at random; null: whole items. longest: seconds after which whole items are cut (held-out ones, and
    training ones without crop); null: nowhere. normalize: null, peak or rms (gentok.data.sound_files.normalized), of what is read.
    held_out,
    classes, max_broken, split_seed: as of gentok.data.folder.ImageFolder. crop_seed: where pieces begin. in_memory: decode all sounds once
    and keep them as float32. Raises FileNotFoundError or ValueError with a line.
    """

    def __init__(
        self,
        path: LocalPath | os.PathLike[str],
        sample_rate: int = 16000,
        channels: int = 1,
        crop: float | None = 1.0,
        longest: float | None = None,
        normalize: str | None = None,
        held_out: float | LocalPath = 0.05,
        classes: bool | None = None,
        max_broken: float = 0.01,
        split_seed: int = 0,
        crop_seed: int = 0,
        in_memory: bool = False,
    ):
        listing, held_out, names = list_folders(path, held_out, classes, SOUNDS)
        super().__init__(
            "sound_folder", listing, held_out, sample_rate=sample_rate, channels=channels, crop=crop, longest=longest, normalize=normalize,
            max_broken=max_broken, split_seed=split_seed, crop_seed=crop_seed, classes=names, in_memory=in_memory,
        )  # fmt: skip
