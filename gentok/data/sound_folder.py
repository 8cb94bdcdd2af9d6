"""SoundFolder: your own sounds. A folder of sound files; where all of them lie in sub-folders, those are the classes.

What becomes of files that cannot be read: see gentok.data.indexed_dataset; how waves leave the set: gentok.data.sound_dataset.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from gentok.data.folder import FolderOptions
from gentok.data.sound_dataset import SoundData, SoundOptions
from gentok.interfaces import LocalPath

__all__ = ["SoundFolder"]


class SoundFolder(SoundData, id="data/sound_folder"):
    """The sound files of a folder and of its sub-folders; arguments as of gentok.data.folder.Folder, with SoundOptions."""

    kind = "sound_folder"

    def __init__(self, path: LocalPath | os.PathLike[str], **options: Annotated[Any, FolderOptions, SoundOptions]):
        super().__init__(path, FolderOptions, options)
