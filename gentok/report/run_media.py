"""The images and sounds of a run's folder, small enough to stand inside a page."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["IMAGES", "SOUNDS", "Shown", "images_of", "sounds_of"]

Attempt = Callable[[str, Callable[[Path], Any]], Any]
IMAGES = 8
"""Steps shown of every kind of image, evenly spaced, the last among them."""
IMAGES_BYTES = 1_000_000
"""Of the images of a page; those above their share are made smaller."""
IMAGE_SIDES = ((1200, 85), (1200, 60), (900, 60), (600, 60), (400, 40))
"""Longest side and JPEG quality of images that are made smaller: the first that fits is taken."""
SOUNDS = 16
"""Sounds shown of a page, first ones first."""
SOUNDS_BYTES = 1_000_000
"""Of the sounds of a page; of those above their share the beginning is kept."""


SPECTROGRAM_SECONDS = 4.0
"""Of a sound, drawn beside its player."""


@dataclass
class Shown:
    """An image, or a sound of the last step that has some: `url` holds it, of a long sound the beginning that `name` tells, and `seen` its
    spectrogram."""

    step: int
    name: str
    url: str
    width: int = 0
    height: int = 0
    seen: str = ""


def _by_kind(paths: Any) -> dict[str, list[tuple[int, Path]]]:
    """KIND_STEP... -> {kind: [(step, path)]}, by step."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        match = re.fullmatch(r"([^.].*)_(\d+)", path.stem)
        if match:
            kinds.setdefault(match[1], []).append((int(match[2]), path))
    return {kind: sorted(found) for kind, found in sorted(kinds.items())}


def _media(
    folder: Path, chosen: Sequence[tuple[str, int, Path]], read: Callable[..., Shown], room: float, attempt: Attempt
) -> dict[str, list[Shown]]:
    """(kind, step, path) -> kind -> what could be read of it, in `room` bytes altogether."""
    out: dict[str, list[Shown]] = {}
    for kind, step, path in chosen:
        found = attempt(str(path.relative_to(folder)), functools.partial(read, step=step, room=int(room / len(chosen))))
        out.setdefault(kind, []).extend([found] if found else [])
    return {kind: found for kind, found in out.items() if found}


def images_of(folder: Path, share: float, attempt: Attempt) -> tuple[dict[str, list[Shown]], dict[str, int]]:
    """The images of a run.

    Args:
        folder: the run's.
        share: of the images of a page, what may come from this run.
        attempt: (path below the folder, function of it) -> its value; None where it cannot be read.

    Returns:
        (kind -> images by step, kind -> how many lie in the folder).
    """
    n, chosen, counts = max(1, round(IMAGES * share)), [], {}
    for kind, found in _by_kind((folder / "pictures").glob("*.png")).items():
        counts[kind] = len(found)
        places = sorted({len(found) - 1 - round(i * (len(found) - 1) / max(1, n - 1)) for i in range(n)})
        chosen += [(kind, *found[place]) for place in places]
    return _media(folder, chosen, _image, IMAGES_BYTES * share, attempt), counts


def _image(path: Path, step: int, room: int) -> Shown:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        size, kind, data = image.size, "png", path.read_bytes()
        small = image.convert("RGB")
    for side, quality in IMAGE_SIDES:
        if max(size) <= IMAGE_SIDES[0][0] and len(data) <= room:
            break
        buffer, kind = io.BytesIO(), "jpeg"
        small.thumbnail((side, side))
        small.save(buffer, "JPEG", quality=quality)
        size, data = small.size, buffer.getvalue()
    return Shown(step, path.stem, _url(f"image/{kind}", data), *size)


def sounds_of(folder: Path, share: float, attempt: Attempt) -> tuple[dict[str, list[Shown]], list[str]]:
    """The sounds of the last step of a run; arguments as of `images_of`.

    Returns:
        (kind -> sounds, what is to be said of those left out).
    """
    last = [(kind, *found[-1]) for kind, found in _by_kind((folder / "sounds").glob("*")).items()]
    chosen = [(kind, step, path) for kind, step, inside in last for path in sorted(inside.glob("*.wav"))]
    most = max(1, round(SOUNDS * share))
    notes = [f"{len(chosen) - most} of {len(chosen)} sounds left out"] if most < len(chosen) else []
    return _media(folder, chosen[:most], _sound, SOUNDS_BYTES * share, attempt), notes


def _sound(path: Path, step: int, room: int) -> Shown:
    name = path.stem.replace("_", " ")
    seen = _spectrogram(path)
    if path.stat().st_size <= room:
        return Shown(step, name, _url("audio/wav", path.read_bytes()), seen=seen)
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(path) as file:
        frames = min(file.frames, max(1, (room - 44) // (2 * file.channels)))
        soundfile.write(buffer, file.read(frames), file.samplerate, "PCM_16", format="WAV")
        cut = f", the first {frames / file.samplerate:.1f} s of {file.frames / file.samplerate:.1f} s" if frames < file.frames else ""
    return Shown(step, name + cut, _url("audio/wav", buffer.getvalue()), seen=seen)


def _spectrogram(path: Path) -> str:
    """The first seconds of a sound as an image; "" where they cannot be drawn."""
    try:
        import soundfile
        import torch

        from gentok.data.image_files import to_uint8
        from gentok.data.spectrograms import spectrograms
    except ImportError:
        return ""
    from PIL import Image

    try:
        frames = int(SPECTROGRAM_SECONDS * soundfile.info(path).samplerate)
        wave, rate = soundfile.read(path, frames=frames, dtype="float32", always_2d=True)
    except (OSError, RuntimeError):  # it is noted where the sound itself is read
        return ""
    buffer = io.BytesIO()
    image = to_uint8(spectrograms(torch.from_numpy(wave.T)[None], rate)[0]).movedim(0, -1).numpy()
    Image.fromarray(image).quantize(64).save(buffer, "PNG")
    return _url("image/png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
