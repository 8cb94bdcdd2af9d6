"""What the scripts of watermarks.md share: kinds of marks, what happens to media, and how many items are found again."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gentok.bundle import Bundle
from gentok.data.image_files import to_media, to_uint8
from gentok.data.sound_files import resample
from gentok.rng import RowRNG
from gentok.types import ABSENT, Tokens
from gentok.watermarks.base import KeyMark
from gentok.watermarks.detection import detect
from gentok.watermarks.key import Key

KEY = Key(b"the key of docs/results/watermarks.py")
MODELS = {"digits": "docs/zoo/mnist5k_ar", "speech": "docs/zoo/spoken_digits_ar_delay"}
KINDS = {
    "exp": ("EXP", "watermark=exp"),
    "its": ("ITS", "watermark=its"),
    "cluster": ("clusters of 2 ids", "watermark=cluster"),
    "cluster8": ("clusters of 8 ids", "watermark=cluster watermark.size=8"),
    "kgw": ("KGW, delta 2 (not distortion-free)", "watermark=kgw"),
    "none": ("unmarked, asked by EXP", "watermark=exp"),
}
"""name: what the table calls it, words of sample.py and of `gentok watermark detect`."""
LEVEL = 0.01
POSITIONS = {"digits": (16, 32, 64), "speech": (66,)}
LEVELS = {"digits": 1, "speech": 1}
"""Of the codes, the first levels that the detector looks at."""
SENTENCES = ["three six four", "seven one", "nine zero five", "two eight"]


# ------------------------------------------------------------------------------------------------------------------ damage


def _jpeg(media: Tensor) -> Tensor:
    out = []
    for image in to_uint8(media):
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "jpeg", quality=75)
        out.append(to_media(torch.from_numpy(np.array(Image.open(file)))[None]))
    return torch.stack(out)


def _image_noise(media: Tensor) -> Tensor:
    return media + 0.1 * RowRNG(torch.arange(len(media))).fork("noise").normal(*media.shape[1:]).float()


def _crop(media: Tensor) -> Tensor:
    """One pixel less on every side, and enlarged to the old size."""
    return torch.nn.functional.interpolate(media[..., 1:-1, 1:-1], media.shape[-2:], mode="bilinear", antialias=True, align_corners=False)


def _sound_noise(media: Tensor) -> Tensor:
    """30 dB below the sound."""
    scale = media.square().mean((1, 2), keepdim=True).sqrt() * 10**-1.5
    return media + scale * RowRNG(torch.arange(len(media))).fork("noise").normal(*media.shape[1:]).float()


DAMAGE: dict[str, dict[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    "digits": {
        "again": ("encoded again", lambda media: to_media(to_uint8(media))),
        "jpeg": ("JPEG, quality 75", _jpeg),
        "noise": ("noise, 5 % of the range", _image_noise),
        "crop": ("a pixel cut off each side, enlarged", _crop),
    },
    "speech": {
        "again": ("encoded again", lambda media: (media.clamp(-1, 1) * 32767).round() / 32767),
        "resampled": ("to 12 kHz and back", lambda media: torch.stack([resample(resample(x, 16000, 12000), 12000, 16000) for x in media])),
        "noise": ("noise, 30 dB below", _sound_noise),
        "frames": ("2 frames cut off", lambda media: media[..., 640:]),
        "cut": ("50 ms cut off (2.5 frames)", lambda media: media[..., 800:]),
    },
}


# ------------------------------------------------------------------------------------------------------------- measurement


def encoded(bundle: Bundle, media: Tensor, lengths: Tensor | None, lost: int) -> Tokens:
    """lost: samples that were cut off in front."""
    with torch.no_grad():
        if lengths is None:
            return bundle.tokenizer.encode(media)
        lengths = (lengths - lost).clamp(min=640)
        return bundle.tokenizer.encode(media[..., : int(lengths.max())], lengths)


def share_same(of: Tokens, again: Tokens, levels: int, groups: Tensor | None) -> float:
    """The share of the first levels' cells whose ids (or groups) are the same."""
    n = min(of.codes.shape[2], again.codes.shape[2])
    a, b = of.codes[:, :levels, :n], again.codes[:, :levels, :n]
    both = (a >= 0) & (b >= 0)
    if groups is not None:
        level = torch.arange(a.shape[1])[:, None]
        a, b = groups[level, a.clamp(min=0)], groups[level, b.clamp(min=0)]
    return float((a == b)[both].double().mean())


def share_found(mark: KeyMark, tokens: Tokens, positions: int, levels: int, keys: int, gap: float | None = None) -> float:
    """The share of items with p <= LEVEL, by the first positions and levels; gap: by edit distance."""
    codes = tokens.codes.clone()
    codes[..., positions:], codes[:, levels:] = ABSENT, ABSENT
    return float(np.mean([answer.p <= LEVEL for answer in detect(mark, Tokens(codes, tokens.spec), keys, gap=gap)]))
