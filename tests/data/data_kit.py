"""Pictures, shards and a toy tokenizer for the tests of data."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image

from gentok.data.datasets import MemoryDataset
from gentok.interfaces import Tokenizer
from gentok.rng import RowRNG
from gentok.types import ABSENT, ClassSpec, ConditionSpec, Raster, Tokens, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("even", "odd"))),))


def paint(path, size=(12, 12), value=None, mode="RGB", seed=0):
    """An image file of noise, or of one value. size: (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape) if value is None else np.full(shape, value)
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)
    return path


def folder(path, count=20, classes=("cat", "dog"), size=(12, 12)):
    for name in classes:
        for i in range(count):
            paint(path / name / f"{i:03d}.png", size, seed=i + 100 * classes.index(name))
    return path


def encoded_picture(kind="PNG", size=(12, 12), seed=0):
    """The bytes of a picture of noise."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def shard(path, count=10, first=0, more=None, format=tarfile.USTAR_FORMAT):
    """A webdataset shard of `count` items: KEY.png and KEY.cls (KEY % 2), and what more(i) -> {suffix: bytes} says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for i in range(first, first + count):
            members = {"png": encoded_picture(seed=i), "cls": str(i % 2).encode(), **(more(i) if more else {})}
            for suffix, data in members.items():
                if data is None:
                    continue
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


class PixelTokenizer(Tokenizer):
    """A pixel's level is its code; level 1 holds the same on even positions, ABSENT on odd ones."""

    def __init__(self, vocab=16, fingerprint="aaaa", levels=1):
        super().__init__()
        strides = (1, 2)[:levels]
        self.spec = TokenSpec((vocab,) * levels, Raster(4, 4), strides=strides, media_shape=(1, 4, 4), encode_fingerprint=fingerprint)

    def encode(self, media, lengths=None, rng=None):
        codes = ((media.flatten(2) + 1) / 2 * (self.spec.vocab - 1)).round().long().repeat(1, self.spec.levels, 1)
        codes[:, ~self.spec.exists()] = ABSENT
        return Tokens(codes, self.spec)


def pictures(count=11):
    """A set of noise in memory."""
    media = torch.from_numpy(RowRNG.of(0, range(count)).uniform(1, 4, 4).numpy()).float() * 2 - 1
    return MemoryDataset(media, torch.arange(count) % 2, CLASSES, {"data": "toy", "split": "train"})


def wounds(good: bytes, count: int):
    """`count` damaged copies: bytes overwritten, and the end cut off, in turn."""
    random = np.random.default_rng(0)
    for i in range(count):
        bad = bytearray(good)
        if i % 2:
            for place in random.integers(0, len(bad), 8):
                bad[place] = random.integers(256)
        else:
            bad = bad[: random.integers(len(bad))]
        yield bytes(bad)
