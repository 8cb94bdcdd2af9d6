"""spoken_digits: English digits and strings of digits, spoken by the hibari-tts package (Apache-2.0); nothing is downloaded.

Every item has its exact transcript. The voice is one, and what its own seed changes lies 35 dB below the speech: items that differ by it
alone would make held-out ones copies of training ones. So an item's seed also draws how fast it is spoken and how high (the wave is
resampled, which moves the whole voice, as a smaller or larger speaker would). Silence around the speech is cut to 30 ms. Texts are spoken
with a full stop: without it some a "four" sounds like "five".

Spoken once, in a minute or two, into a webdataset shard per split of 16-bit FLAC at 24 kHz (members KEY.flac, KEY.json), which is kept and
read like any other shard.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from gentok.atomic import whole_file, writable_folder
from gentok.data.fsdd import WORDS
from gentok.data.progress import progress
from gentok.data.sound_files import resample
from gentok.data.sound_shards import SoundShards
from gentok.interfaces import LocalPath
from gentok.rng import RowRNG
from gentok.settings import NonNegativeInt, PositiveFloat, PositiveInt
from gentok.types import ClassSpec, ConditionSpec, fingerprint

__all__ = ["SpokenDigits", "WORDS"]

FORMAT = 2
RATE = 24000
_HELD_OUT = 1 << 40
"""The number of the first held-out item: seeds of the two splits never meet."""
_AUDIBLE, _MARGIN = 1e-3, 0.03
"""Magnitude below which the ends of a wave are silence (60 dB below full scale), and the seconds of it that stay."""


class SpokenDigits(SoundShards, id="data/spoken_digits"):
    """Spoken digits, and strings of them.

    Args:
        digits: how many are said in one utterance, a number or [least, most]. Single digits come in turn and have the digit as class; the
            words ("seven three one") are the condition `text` of strings.
        items: utterances to train on.
        held_out: utterances that are held out, of other seeds.
        sample_rate, crop, longest, normalize, in_memory: see SoundOptions.
        captions: "ids": single digits have the condition `text`, too.
        speed: at most this many times faster or slower, uniformly by the logarithm; 1: as the voice is.
        pitch: at most this many times higher or lower, in the same way.
        seed: of all utterances.
        cache: the folder where they are kept; null: $XDG_CACHE_HOME/gentok (~/.cache/gentok).

    Raises:
        ImportError: hibari-tts is missing and nothing is cached; the message has the pip command.
        ValueError, OSError: a one-line error that says what to change.
    """

    kind = "spoken_digits"
    condition_spec = ConditionSpec((("class", ClassSpec(WORDS)),))

    def __init__(
        self,
        digits: int | Sequence[int] = 1,
        items: PositiveInt = 2000,
        held_out: PositiveInt = 200,
        sample_rate: PositiveInt = 16000,
        crop: PositiveFloat | None = 0.5,
        longest: PositiveFloat | None = None,
        normalize: str | None = None,
        captions: Literal["ids"] | None = None,
        speed: Annotated[float, Field(ge=1, le=2)] = 1.1,
        pitch: Annotated[float, Field(ge=1, le=1.5)] = 1.05,
        seed: NonNegativeInt = 0,
        in_memory: bool = True,
        cache: LocalPath | None = None,
    ):
        least, most = (digits, digits) if isinstance(digits, int) else tuple(digits) if len(digits) == 2 else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(f"data.digits={digits}: a number of digits, at least 1, or [least, most]")
        folder = Path(cache).expanduser() if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gentok"
        folder = folder / "spoken_digits"
        word = fingerprint(FORMAT, [least, most, speed, pitch, seed])
        paths = {}
        for name, first, count in (("train", 0, items), ("held_out", _HELD_OUT, held_out)):
            paths[name] = folder / f"{name}-{count}-{word}.tar"
            _made(paths[name], RowRNG.of(seed, range(first, first + count)), (least, most), speed, pitch)
        single = most == 1
        super().__init__(
            str(paths["train"]), held_out=str(paths["held_out"]), sample_rate=sample_rate, crop=crop, longest=longest, normalize=normalize,
            label="json.digits" if single else None, caption="json.text", classes=WORDS if single else False,
            captions=captions if single else "ids", caption_length=6 * most, in_memory=in_memory, max_broken=0.0,
            index=str(folder / "shards"),
        )  # fmt: skip


def _made(path: Path, rng: RowRNG, digits: tuple[int, int], speed: float, pitch: float) -> None:
    """The shard `path`, unless it is there: all of it or nothing. One process speaks, others that come meanwhile wait for it."""
    if path.is_file():
        return
    voice = _voice()
    with _alone(path):
        if path.is_file():
            return
        plan = _plan(rng, digits, speed, pitch)
        with (
            progress("speaking", len(plan), "utterances") as advance,
            whole_file(path) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for i, (said, seed, fast, high) in enumerate(plan):
                text = " ".join(WORDS[d] for d in said)
                wave = _trimmed(_pitched(torch.as_tensor(voice(f"{text}.", speed=fast, seed=seed)).float(), high))
                about = {"digits": "".join(map(str, said)), "text": text, "seed": seed, "speed": round(fast, 4), "pitch": high}
                _add(archive, f"{i:06d}.flac", _flac(wave))
                _add(archive, f"{i:06d}.json", json.dumps(about).encode())
                advance(1)


def _voice() -> Any:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise ImportError(f"spoken_digits are spoken by the package hibari-tts ({error}); run: pip install hibari-tts") from error
    return Hibari()


def _plan(rng: RowRNG, digits: tuple[int, int], speed: float, pitch: float) -> list[tuple[list[int], int, float, float]]:
    """(digits, the voice's seed, speed, pitch in steps of 1 %) of each row of the rng; single digits in turn."""
    least, most = digits
    seeds = (rng.words(1)[:, 0] & 0x7FFF_FFFF).tolist()
    shapes, drawn = rng.uniform(3).tolist(), (rng.uniform(most) * 10).long().tolist()
    plan = []
    for i, ((fast, high, count), values, seed) in enumerate(zip(shapes, drawn, seeds)):
        said = [i % 10] if most == 1 else values[: least + int(count * (most - least + 1))]
        plan.append((said, seed, math.exp((2 * fast - 1) * math.log(speed)), round(math.exp((2 * high - 1) * math.log(pitch)), 2)))
    return plan


def _pitched(wave: Tensor, factor: float) -> Tensor:
    """float [T] at 24 kHz -> the same played `factor` times faster: higher, and shorter."""
    return resample(wave, round(RATE * factor), RATE)


def _trimmed(wave: Tensor) -> Tensor:
    loud = (wave.abs() > _AUDIBLE).nonzero()[:, 0]
    if not len(loud):
        return wave
    margin = round(_MARGIN * RATE)
    return wave[max(0, int(loud[0]) - margin) : int(loud[-1]) + 1 + margin]


def _flac(wave: Tensor) -> bytes:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, (wave.clamp(-1, 1) * 32767).round().to(torch.int16).numpy(), RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a killed one. Where there are no locks, several make the same file."""
    lock = writable_folder(path.parent) / f".{path.name}.lock"
    with open(lock, "w") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)
