"""`gentok codec resynthesize FOLDER OUT ckpt=BUNDLE`: every sound of a folder through a codec, as benchmarks of codecs read them.

    OUT/sounds/NAME                    the resynthesised sounds, by the names that they have in FOLDER: what Codec-SUPERB
                                       (arXiv 2402.13071) compares as syn_path with FOLDER as ref_path
    OUT/pred.scp, OUT/gt.scp           "key path" of these and of the originals, the lists of VERSA (arXiv 2412.17667) with --io soundfile

Sounds have the tokenizer's sample rate and as many seconds as before; WAV and FLAC stay what they are, other formats become WAV.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.atomic import whole_file, writable_folder
from gentok.bundle.files import neighbours
from gentok.codec import codec_of, compress, decompress
from gentok.data.progress import progress
from gentok.data.sound_files import SOUND_SUFFIXES
from gentok.errors import ConfigError, counted

__all__ = ["resynthesize"]


def resynthesize(config: Mapping[str, Any]) -> dict[str, Any]:
    """Resynthesises the sounds of a folder and of those in it.

    Args:
        config: a resolved conf/codec.yaml. input: the folder; output: another, with nothing in it unless overwrite; levels and chunk as of
            compress.

    Returns:
        sounds, seconds, bits_per_second of all of them as .gtk files, and, where there are any, how many were unreadable.

    Raises:
        ValueError: the configuration, the tokenizer or the folders do not fit, or no sound can be read.
        OSError: something cannot be written.
    """
    source, out = (Path(config[key]).expanduser() for key in ("input", "output"))
    paths = _sounds(source, out, config["overwrite"])
    codec, lists, refused = codec_of(config), {"gt": [], "pred": []}, {}  # type: ignore[var-annotated]
    seconds = bits = 0.0
    with tempfile.TemporaryDirectory() as folder, progress("resynthesizing", len(paths), "sounds", config["progress"]) as advance:
        own = {**config, "progress": False, "overwrite": True}
        for path in paths:
            name = path.relative_to(source)
            made = out / "sounds" / (name if name.suffix.lower() in (".wav", ".flac") else name.with_suffix(f"{name.suffix}.wav"))
            made.parent.mkdir(parents=True, exist_ok=True)
            try:
                report = compress({**own, "input": str(path), "output": f"{folder}/codes.gtk"}, codec)
                decompress({**own, "input": f"{folder}/codes.gtk", "output": str(made)}, codec)
            except ValueError as error:
                refused[str(name)] = " ".join(str(error).split())
            else:
                key = re.sub(r"\s", "_", name.as_posix())
                lists["gt"].append(f"{key} {path.resolve()}")
                lists["pred"].append(f"{key} {made.resolve()}")
                seconds, bits = seconds + report["seconds"], bits + report["seconds"] * report["bits_per_second"]
            advance(1)
    for name, reason in list(refused.items())[:5]:
        print(f"left out: {name}: {reason}")
    if not lists["gt"]:
        raise ConfigError(f"none of {counted(len(paths), 'sound')} in {source} could be read")
    for kind, lines in lists.items():
        with whole_file(out / f"{kind}.scp") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
    unreadable = {"unreadable": len(refused)} if refused else {}
    return {"sounds": len(lists["gt"]), "seconds": seconds, "bits_per_second": bits / seconds, **unreadable}


def _sounds(source: Path, out: Path, overwrite: bool) -> list[Path]:
    """The sounds of a folder. Raises ConfigError where there are none, or the other folder does not do."""
    if not source.is_dir():
        raise ConfigError(f"there is no folder {source}{neighbours(source)}")
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{out} lies in {source}: name a folder elsewhere")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ConfigError(f"{out} is there already, and not empty: name another folder, or set overwrite=true")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file())
    if not paths:
        raise ConfigError(f"{source} holds no sounds: files ending in {', '.join(SOUND_SUFFIXES[:4])} and the like are read")
    writable_folder(out, "OUT")
    return paths
