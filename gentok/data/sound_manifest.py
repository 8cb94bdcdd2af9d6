"""SoundManifest: sounds that a table (.csv, .tsv, .jsonl) lists, one row each: the file, and, where wanted, its class and its text.

The table's form is that of gentok.data.manifest; what becomes of files that cannot be read: gentok.data.indexed_dataset.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from gentok.data.manifest import class_list, list_manifests
from gentok.data.sound_dataset import SOUNDS, SoundData
from gentok.interfaces import LocalPath

__all__ = ["SoundManifest"]


class SoundManifest(SoundData, id="data/sound_manifest"):
    """media_shape (channels, samples of the longest item), sample_rate; train and held_out over the rows of the manifest `path`.

    path_column, label_column, caption_column, held_out, classes, captions, caption_length: as of gentok.data.manifest.Manifest; a caption
    is what is said. sample_rate, channels, crop, longest, normalize, max_broken, split_seed, crop_seed, in_memory: as of SoundFolder.
    Raises FileNotFoundError or ValueError with a line.
    """

    def __init__(
        self,
        path: LocalPath | os.PathLike[str],
        path_column: str = "path",
        label_column: str = "label",
        caption_column: str = "text",
        sample_rate: int = 16000,
        channels: int = 1,
        crop: float | None = 1.0,
        longest: float | None = None,
        normalize: str | None = None,
        held_out: float | LocalPath = 0.05,
        classes: bool | Sequence[str] | None = None,
        captions: str | None = None,
        caption_length: int = 128,
        max_broken: float = 0.01,
        split_seed: int = 0,
        crop_seed: int = 0,
        in_memory: bool = False,
    ):
        columns = {"path": path_column, "label": label_column, "caption": caption_column}
        listing, held_out = list_manifests(path, held_out, columns, classes, captions, SOUNDS)
        super().__init__(
            "sound_manifest", listing, held_out, sample_rate=sample_rate, channels=channels, crop=crop, longest=longest,
            normalize=normalize, max_broken=max_broken, split_seed=split_seed, crop_seed=crop_seed, classes=class_list(classes),
            captions=captions is not None, caption_length=caption_length, in_memory=in_memory,
        )  # fmt: skip
