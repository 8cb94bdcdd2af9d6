"""`gentok codes ckpt=BUNDLE data=folder data.path=PHOTOS out=FOLDER format=parquet`: the codes of a data set, for other programs.

Every item of both splits is encoded once, as it is, into OUT/train and OUT/held_out. format=safetensors is gentok's own token file
(gentok/data/token_cache.py), the others are made of it (gentok/data/token_formats.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.atomic import writable_folder
from gentok.build import build
from gentok.bundle import Bundle, load, stamp
from gentok.data.token_cache import encode_set
from gentok.data.token_dataset import TokenDataset
from gentok.data.token_formats import WRITERS
from gentok.devices import chosen_device
from gentok.errors import ConfigError, check_choice, counted
from gentok.interfaces import MediaData
from gentok.training.data_checks import fit_to_items

__all__ = ["codes", "main"]


def codes(config: Mapping[str, Any]) -> list[Path]:
    """Encodes a data set and prints what was written.

    Args:
        config: a resolved conf/codes.yaml.

    Returns:
        The files.

    Raises:
        ValueError: the configuration, the tokenizer or the data do not fit.
        OSError: something cannot be read or written.
        ImportError: a package is not installed.
    """
    check_choice("format", config["format"], ("safetensors", *WRITERS))
    if not isinstance(config.get("data"), Mapping):
        raise ConfigError("the codes of which data? data=folder data.path=FOLDER, or another choice of `gentok codes --help data`")
    device = chosen_device(config["device"])
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    data = build(config["data"], trust=config["trust"], where="data", role=MediaData)
    _check(bundle, data)
    out, written = writable_folder(Path(config["out"]).expanduser(), "out"), []
    with tempfile.TemporaryDirectory(dir=out, prefix=".codes") as temporary:
        for name, split in (("train", data.train), ("held_out", data.held_out)):
            own = config["format"] == "safetensors"
            path = (out if own else Path(temporary)) / f"{name}.safetensors"
            encode_set(bundle.tokenizer, split, path, batch_size=config["batch_size"], progress=config["progress"], device=device)
            stored = TokenDataset(path)
            files = [path] if own else WRITERS[config["format"]](stored, out / name)
            print(f"{name}: {counted(len(stored), 'item')}, {', '.join(map(str, files))}")
            written += files
    return written


def _check(bundle: Bundle, data: MediaData) -> None:
    """Raises ConfigError where the data are no media of this tokenizer; gives one of sounds the data's longest item."""
    fit_to_items(bundle, data)
    wanted, found = bundle.spec.media_shape, data.media_shape
    if data.sample_rate is None and wanted is not None and tuple(wanted) != tuple(found or ()):
        sizes = f"this tokenizer is of images {tuple(wanted)}, the data have {tuple(found or ())}"
        raise ConfigError(f"{sizes}: set data.size={wanted[-1]}, or the channels")
    if not bundle.spec.encode_fingerprint:  # a training checkpoint
        stamp(bundle.tokenizer, bundle.tokenizer_config)


def main() -> None:
    """`gentok codes`."""
    from gentok.cli import run

    run("codes", codes)


if __name__ == "__main__":
    main()
