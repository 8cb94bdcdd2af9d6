"""Sounds, folders and shards of them, and a toy tokenizer of unequal lengths, for the tests of data."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from gentok.interfaces import Tokenizer
from gentok.types import ABSENT, Frames, Tokens, TokenSpec


def tone(seconds=0.5, rate=8000, hz=440.0, channels=1, level=0.3, seed=None):
    """float32 [T, channels]: a sine, with noise of its own where there is a seed."""
    time = np.arange(round(seconds * rate)) / rate
    wave = level * np.sin(2 * np.pi * hz * time)[:, None].repeat(channels, 1)
    if seed is not None:
        wave = wave + 0.1 * np.random.default_rng(seed).standard_normal(wave.shape)
    return wave.astype(np.float32)


def encoded_sound(kind="WAV", rate=8000, **form):
    """The bytes of a tone."""
    out = io.BytesIO()
    soundfile.write(out, tone(rate=rate, **form), rate, format=kind)
    return out.getvalue()


def sing(path, rate=8000, **form):
    """A file of a tone; its suffix says the kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded_sound({"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3"}[path.suffix[1:]], rate, **form))
    return path


def choir(path, count=10, classes=("low", "high"), rate=8000, least=0.2):
    """A folder of tones of unequal lengths: `least` seconds and a little more with every one."""
    for name in classes:
        for i in range(count):
            sing(path / name / f"{i:03d}.wav", rate, seconds=least + 0.013 * i, hz=300 + 40 * i, seed=i + 100 * classes.index(name))
    return path


def sound_shard(path, count=8, rate=8000, kind="FLAC", more=None):
    """A webdataset shard of `count` items: KEY.flac, KEY.cls (KEY % 2), and what more(i) -> {suffix: bytes} says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            wave = encoded_sound(kind, rate, seconds=0.1 + 0.02 * i, seed=i)
            members = {kind.lower(): wave, "cls": str(i % 2).encode(), **(more(i) if more else {})}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


class LevelTokenizer(Tokenizer):
    """A frame of `hop` samples becomes its mean magnitude in 16 steps; level 1 counts frames, modulo 16. hop samples per position."""

    sample_rate = 16000

    def __init__(self, hop=100, frames=None):
        super().__init__()
        self.hop = hop
        grid = Frames(self.sample_rate / hop, frames)
        self.spec = TokenSpec((16, 16), grid, modality="audio", media_shape=(1,), sample_rate=16000, encode_fingerprint="cccc")

    def encode(self, media, lengths=None, rng=None):
        frames = F.pad(media.abs().mean(1), (0, -media.shape[2] % self.hop)).unflatten(1, (-1, self.hop)).mean(2)
        level = (frames * 32).long().clamp(0, 15)
        codes = torch.stack([level, (torch.arange(level.shape[1]) % 16).expand_as(level)], 1)
        n = torch.full((len(media),), level.shape[1]) if lengths is None else -(-lengths // self.hop)
        codes.masked_fill_((torch.arange(level.shape[1]) >= n[:, None])[:, None], ABSENT)
        return Tokens(codes, self.spec, n)

    def bounded(self, frames):
        other = LevelTokenizer(self.hop)
        other.spec = replace(other.spec, grid=Frames(self.sample_rate / self.hop, frames))
        return other
