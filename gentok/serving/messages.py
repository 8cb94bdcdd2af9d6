"""What a request says, checked, and what an answer holds. Media are files in base64: PNG, or WAV of 16 bits."""

from __future__ import annotations

import base64
import io
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gentok.bundle import Bundle
from gentok.data.image_files import read_pixels, to_media, to_uint8
from gentok.data.sound_files import FullScale, read_sound, sound_bytes
from gentok.errors import ConfigError, counted
from gentok.sampling_plan import Samples
from gentok.types import ABSENT, Frames, Tokens, TokenSpec

__all__ = [
    "DecodeRequest", "SampleRequest", "asked_by_address", "decoded_text", "grid_of", "items_of", "keep_of", "media_file", "media_type",
    "read_media", "sampler_settings", "tokens_of",
]  # fmt: skip

Number = float | int | bool
Setting = Number | str | None | list[Number]


class SampleRequest(BaseModel):
    """POST /v1/sample.

    Attributes:
        n: items.
        condition: 7, "horse", {"class": [3, 4]}, a text, ...; null: none.
        seed: item i depends on (seed, i) alone.
        sampler: its name in conf/sampler; null: the server's.
        settings: of the sampler.
        guidance, guidance_schedule: classifier-free guidance; null: the server's.
        known: a file in base64, an image or sound to complete.
        keep: what stays of it: a region, seconds, or rows of 0 and 1, a mask of the image.
        duration: of sounds, in seconds.
        media: whether the answer holds media.
        codes: whether it holds codes.
    """

    model_config = ConfigDict(extra="forbid")

    n: Annotated[int, Field(ge=1)] = 1
    condition: Any = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    sampler: str | None = None
    settings: dict[str, Setting] = {}
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    known: str | None = None
    keep: str | float | list[list[float]] | None = None
    duration: float | list[float] | None = None
    media: bool = True
    codes: bool = False


class DecodeRequest(BaseModel):
    """POST /v1/decode.

    Attributes:
        codes: [B][K][N].
        keep: only the first so many nested levels, tokens of a nested line or scales of a pyramid; null: all.
    """

    model_config = ConfigDict(extra="forbid")

    codes: list[list[list[int]]]
    keep: Annotated[int, Field(ge=1)] | None = None


def asked_by_address(
    condition: str | None = None, seed: int = 0, sampler: str | None = None, guidance: float | None = None, duration: float | None = None
) -> SampleRequest:  # fmt: skip
    """The request of a GET. Raises ValueError where a field is wrong."""
    given: Any = int(condition) if condition is not None and condition.isdigit() else condition
    fields = {"condition": given, "seed": seed, "sampler": sampler, "guidance": guidance, "duration": duration}
    return SampleRequest.model_validate(fields)


def sampler_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a sampler that a request may make.

    Raises:
        ConfigError: one would open a file of the server.
    """
    for name, value in settings.items():
        if name == "ckpt" or (isinstance(value, str) and not value.replace("_", "").replace("-", "").isalnum()):
            raise ConfigError(f"settings.{name}: files are the server's to choose: gentok serve ... sampler.{name}=PATH")
    return settings


def media_type(spec: TokenSpec) -> str:
    """The type of the files that media are sent as."""
    return "audio/wav" if spec.modality == "audio" else "image/png"


def read_media(data: bytes, spec: TokenSpec, max_seconds: float) -> Tensor:
    """The bytes of an image or sound file as media of a tokenizer.

    Args:
        data: of any format that gentok reads.
        spec: of the tokenizer.
        max_seconds: of a sound.

    Returns:
        float [C, H, W] of the media's size, or [C, T] at its rate, in [-1, 1].

    Raises:
        ValueError: they cannot be read, or the sound is longer.
    """
    channels, *size = spec.media_shape or (1,)
    if spec.modality == "audio":
        most = int(max_seconds * (spec.sample_rate or 1))
        sound = read_sound(data, spec.sample_rate, channels, samples=most + 1, name="the sound")
        if sound.shape[-1] > most:
            raise ConfigError(f"the sound is longer than the {max_seconds:g} s that this server takes")
        return FullScale()(sound, "the sound")
    return to_media(torch.from_numpy(read_pixels(data, channels, size, name="the image")))


def keep_of(keep: Any) -> Any:
    """`keep` of a request as a plan takes it. Raises ConfigError where its rows are no mask."""
    if not isinstance(keep, list):
        return keep
    if len({len(row) for row in keep}) != 1:
        raise ConfigError("keep: the rows of a mask have the same length, and there is one at least")
    return torch.tensor(keep)


def decoded_text(text: str, what: str) -> bytes:
    """The bytes of a file in base64. Raises ConfigError."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(f"{what}: expected a file in base64") from None


def media_file(media: Tensor, spec: TokenSpec) -> bytes:
    """float [C, H, W] or [C, T] in [-1, 1] as a file of `media_type`."""
    if spec.modality == "audio":
        return sound_bytes(media, spec.sample_rate or 0)
    from PIL import Image

    pixels, out = to_uint8(media).movedim(0, -1).numpy(), io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, "png")
    return out.getvalue()


def items_of(samples: Samples, spec: TokenSpec, media: bool, codes: bool) -> list[dict[str, Any]]:
    """What an answer says of each item: its media in base64, its codes [K][N] (-1: absent), its network calls, its text,
    and of samplers that weight items the log of its weight (null: 0)."""
    items = []
    for i, calls in enumerate(samples.calls.tolist()):
        item: dict[str, Any] = {"calls": calls}
        if media:
            own = samples.media[i] if samples.lengths is None else samples.media[i][..., : int(samples.lengths[i])]
            item["media"] = base64.b64encode(media_file(own, spec)).decode()
        if codes:
            if not isinstance(samples.tokens, Tokens):
                raise ConfigError("codes=true: this model makes latents, which are not sent")
            item["codes"] = samples.tokens.codes[i].tolist()
        if samples.log_weight is not None:
            weight = float(samples.log_weight[i])
            item["log_weight"] = weight if math.isfinite(weight) else None
        if samples.texts:
            item["text"] = samples.texts[i]
        items.append(item)
    return items


def grid_of(spec: TokenSpec) -> dict[str, Any]:
    """Where the cells of an item lie, for a page that shows them: its kind and sizes (types/grids.py), levels and positions."""
    grid = {"kind": type(spec.grid).__name__.lower(), **vars(spec.grid)}
    return {**grid, "levels": spec.levels or 1, "positions": spec.positions if spec.grid.positions else None, "prefixes": spec.prefixes}


def tokens_of(codes: list[list[list[int]]], bundle: Bundle, max_seconds: float, keep: int | None = None) -> Tokens:
    """Codes of a request as tokens of the model.

    Args:
        codes: [items][levels][positions].
        bundle: the model.
        max_seconds: of a sound.
        keep: the prefix that stays of them; None: all.

    Raises:
        ConfigError, ValueError: they are none, or of a longer sound.
    """
    spec = bundle.spec
    lengths = {len(level) for item in codes for level in item}
    if not codes or len(lengths) != 1 or {len(item) for item in codes} != {spec.levels}:
        raise ConfigError(f"codes: expected [items][{counted(spec.levels, 'level')}][positions], all of the same length")
    if isinstance(spec.grid, Frames) and max(lengths) > max_seconds * spec.grid.rate_hz:
        raise ConfigError(f"codes: {max(lengths)} frames are more than the {max_seconds:g} s that this server takes")
    if any(not -(2**63) <= code < 2**63 for item in codes for level in item for code in level):
        raise ConfigError("codes: numbers beyond 64 bits")
    tokens = Tokens(torch.tensor(codes, dtype=torch.int64), spec)
    if isinstance(spec.grid, Frames):  # a sound ends with its last frame
        there = (tokens.codes != ABSENT).any(1) * torch.arange(1, tokens.codes.shape[2] + 1)
        tokens.lengths = there.amax(1).clamp(min=1)
    return tokens if keep is None else tokens.prefix(keep)
