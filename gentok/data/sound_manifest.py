"""SoundManifest: sounds that a table (.csv, .tsv, .jsonl) lists, one row each: the file, and, where wanted, its class and its text.

The table's form is that of gentok.data.manifest; what becomes of files that cannot be read: gentok.data.indexed_dataset.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any

from gentok.data.manifest import ManifestOptions
from gentok.data.sound_dataset import SoundData, SoundOptions
from gentok.interfaces import LocalPath

__all__ = ["SoundManifest", "SoundManifestOptions"]


@dataclass(frozen=True)
class SoundManifestOptions(ManifestOptions):
    """Options of manifests of sounds, whose captions are what is said."""

    caption_column: str = "text"


class SoundManifest(SoundData, id="data/sound_manifest"):
    """The sounds that a table lists; arguments as of gentok.data.manifest.Manifest, with SoundOptions."""

    kind = "sound_manifest"

    def __init__(self, path: LocalPath | os.PathLike[str], **options: Annotated[Any, SoundManifestOptions, SoundOptions]):
        super().__init__(path, SoundManifestOptions, options)
