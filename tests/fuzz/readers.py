"""What others write and gentok reads: images, sounds, tar shards, tables. Damage may give other media; never another kind of error."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_engine import Mutation, Target
from fuzz_mutators import damage_bytes


def pixels(seed: int, side: int = 20) -> Any:
    """uint8 [side, side + 4, 3] of smooth noise."""
    import numpy as np

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((side // 5, (side + 4) // 6, 1), np.uint8))


def image_bytes(seed: int, kind: str) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(pixels(seed)).save(out, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
    return out.getvalue()


def sound_bytes(seed: int, kind: str, subtype: str | None = None, seconds: float = 0.4) -> bytes:
    import numpy as np
    import soundfile

    time = np.arange(round(8000 * seconds)) / 8000
    wave = 0.4 * np.sin(2 * np.pi * (200 + 30 * seed) * time) + 0.05 * np.random.default_rng(seed).standard_normal(len(time))
    out = io.BytesIO()
    soundfile.write(out, wave.astype("float32"), 8000, format=kind, subtype=subtype)
    return out.getvalue()


def bare_mp3() -> bytes:
    """Without the frame that states its length."""
    data = sound_bytes(1, "MP3", seconds=1.0)
    return data[data.index(data[:2], 100) :]


def piped_wav() -> bytes:
    data = sound_bytes(1, "WAV")
    place = data.index(b"data") + 4
    return data[:place] + b"\x00\xf0\xff\x7f" + data[place + 4 :]


def use_image(path: Path, out: Path) -> Any:
    """The size from the header is that of what is decoded; scaled and cut it has the size that is asked for."""
    from gentok.data.image_files import image_size, read_pixels

    size, whole = image_size(path), read_pixels(path)
    assert whole.shape == (3, *size), f"{whole.shape} of {size}"
    assert read_pixels(path, 1, 16).shape == (1, 16, 16)
    return size, whole.tobytes()


def use_sound(path: Path, out: Path) -> Any:
    """The length is that of what is decoded, and a part is a part of the whole."""
    from gentok.data.sound_files import read_sound, sound_size

    samples, rate, channels = sound_size(path)
    if samples * channels > 50_000_000:
        raise ValueError(f"{path} states {samples} samples: too long for this test")
    whole = read_sound(path)
    assert whole.shape == (channels, samples), f"{whole.shape} of {(channels, samples)}"
    start = samples // 3
    part = read_sound(path, start=start, samples=500)
    assert part.shape[1] == min(500, samples - start) and float((part - whole[:, start : start + 500]).abs().max()) < 1e-5
    return rate, whole.numpy().tobytes()


def files_target(name: str, make: Callable[[], dict[str, bytes]], use: Callable[[Path, Path], Any]) -> Target:
    """A folder of files, one of which is damaged, and all of which are read."""

    def write(folder: Path) -> Path:
        place = folder / name
        place.mkdir()
        for file, data in make().items():
            (place / file).write_bytes(data)
        return place

    def mutate(rng: random.Random, path: Path) -> Mutation:
        file = rng.choice(sorted(path.iterdir()))
        wounds = [damage_bytes(rng, file).what for _ in range(rng.choice([1, 1, 2, 5])) if file.stat().st_size]
        return Mutation(f"{file.name}: {' and '.join(wounds)}", legal=True)

    return Target(name, write, mutate, lambda path, out: [use(file, out) for file in sorted(path.iterdir())])


# ------------------------------------------------------------------------------------------------------------------------ sets


def summary(data: Any) -> Any:
    """What a set gives: every item is in a split, or counted with a reason."""
    import hashlib

    out = []
    for part in (data.train, data.held_out):
        batch = part.__getitems__(range(len(part)))
        assert len(batch.media) == len(part) and bool(batch.media.isfinite().all())
        skipped = part.skipped
        assert len(skipped["files"]) == min(50, skipped["count"]) or skipped["count"] > len(skipped["files"]) > 0
        assert set(skipped["files"]) == set(skipped.get("reasons", {})) and all("\n" not in r for r in skipped.get("reasons", {}).values())
        json.dumps(skipped).encode(), "".join(part.names).encode()
        out.append((len(part), hashlib.sha256(batch.media.numpy().tobytes()).hexdigest(), skipped["count"]))
    return out


def make_shard(folder: Path) -> Path:
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for i in range(12):
            members = {"png": image_bytes(i, "PNG"), "cls": b"ab"[i % 2 : i % 2 + 1], "json": json.dumps({"text": f"n {i}"}).encode()}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder / "shard.tar"


def use_shard(path: Path, out: Path) -> Any:
    from gentok.data.shards import Shards

    data = Shards(str(path), held_out=0.25, size=16, max_broken=0.9, captions="ids", caption="json.text", index=str(out / "index"))
    return summary(data)


def damage_shard(rng: random.Random, path: Path) -> Mutation:
    """Bytes anywhere, or fields of a member's header with its checksum mended."""
    if rng.random() < 0.5:
        return Mutation(damage_bytes(rng, path).what, legal=True)
    data = bytearray(path.read_bytes())
    place = 1536 * rng.randrange(12) // 512 * 512
    first, last = rng.choice([(0, 100), (100, 108), (124, 136), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500)])
    names, kinds = (b"x.1.png", b"../../x.png", b"\xff.png"), (b"1", b"2", b"5", b"L", b"x", b"g", b"S")
    value = rng.choice([b"77777777777", b"\x80" + bytes(10) + b"\xff", b"-1", *names, *kinds])
    data[place + first : place + last] = value[: last - first].ljust(last - first, b"\0")
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % (sum(data[place : place + 512]) % 8**6)
    path.write_bytes(bytes(data))
    return Mutation(f"{value!r} at {place} + {first}", legal=True)


def table_target(kind: str) -> Target:
    """A table and its images; only the table is damaged."""

    def make(folder: Path) -> Path:
        place = folder / "table"
        place.mkdir()
        rows = [(f"{i}.png", "ab"[i % 2], f'a, "cat" {i}') for i in range(12)]
        for i, (name, _, _) in enumerate(rows):
            (place / name).write_bytes(image_bytes(i, "PNG"))
        if kind == "jsonl":
            lines = [json.dumps({"path": name, "label": label, "caption": caption}) for name, label, caption in rows]
        else:
            lines = ["path,label,caption", *('{},{},"{}"'.format(name, label, caption.replace('"', '""')) for name, label, caption in rows)]
        (place / f"t.{kind}").write_text("\n".join(lines) + "\n")
        return place

    def mutate(rng: random.Random, path: Path) -> Mutation:
        file = path / f"t.{kind}"
        if rng.random() < 0.4:
            return Mutation(damage_bytes(rng, file).what, legal=True)
        text = file.read_text()
        at = rng.randrange(len(text))
        word = rng.choice(['"', '"', '"\n', ",", ",,", "\n", "\r", "\0", "\\", "{", "}", "[", "\ufeff", "é", "../"])
        file.write_text(text[:at] + word + text[at + rng.choice([0, 0, 1, 20]) :])
        return Mutation(f"{word!r} at {at}", legal=True)

    def use(path: Path, out: Path) -> Any:
        from gentok.data.manifest import Manifest

        return summary(Manifest(path / f"t.{kind}", held_out=0.25, size=16, max_broken=0.9, captions="ids"))

    return Target(f"table_{kind}", make, mutate, use)


IMAGES = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "TGA", "AVIF", "JPEG2000")
SOUNDS = (
    *(("WAV", None), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)),
    *(("AIFF", None), ("AU", None), ("CAF", None), ("W64", None), ("RF64", None)),
)


def images() -> dict[str, bytes]:
    from PIL import Image

    Image.init()
    return {f"image.{kind.lower()}": image_bytes(0, kind) for kind in IMAGES if kind in Image.SAVE}


def sounds() -> dict[str, bytes]:
    usual = {f"{subtype or 'usual'}.{kind.lower()}": sound_bytes(0, kind, subtype) for kind, subtype in SOUNDS}
    return usual | {"bare.mp3": bare_mp3(), "piped.wav": piped_wav()}


TARGETS = [
    files_target("images", images, use_image),
    files_target("sounds", sounds, use_sound),
    Target("shard", make_shard, damage_shard, use_shard),
    table_target("csv"),
    table_target("jsonl"),
]
