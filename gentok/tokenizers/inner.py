"""A tokenizer inside another: what a tokenizer on latents takes for its frozen inner tokenizer.

The inner one encodes media to Latents on a raster and decodes them (a KL autoencoder). It is a child of the outer one, in eval mode and
without gradient, and its settings are part of the outer one's: so a bundle nests it. In a training run it is given as {ckpt: BUNDLE}; with
the `width` and `stride` of its latents beside it, a configuration can be described where the bundle is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentok.rng import RowRNG
from gentok.types import Frames, Latents, Raster, TokenSpec

__all__ = ["inner_tokenizer", "latent_sizes", "speech_sizes"]


def latent_sizes(spec: TokenSpec) -> dict[str, Any]:
    """{width, stride} of the latents of a tokenizer."""
    return {"width": spec.width, "stride": spec.media_shape[1] // spec.grid.h if isinstance(spec.grid, Raster) else None}


def speech_sizes(spec: TokenSpec) -> dict[str, Any]:
    """{vocab_size, hop, sample_rate} of a tokenizer of sound; {} of one that speech_text does not take, which says so itself."""
    if spec.levels != 1 or not isinstance(spec.grid, Frames):
        return {}
    return {"vocab_size": spec.vocab, "hop": round(spec.sample_rate / spec.grid.rate_hz), "sample_rate": spec.sample_rate}


def inner_tokenizer(latents: Any, media_shape: Sequence[int]) -> nn.Module:
    """A built tokenizer, frozen; or of {width, stride} one that knows its latents' shape alone. Raises ValueError with a line."""
    if isinstance(latents, Mapping):
        if latents.get("ckpt") is not None or not {"width", "stride"} <= set(latents) <= {"ckpt", "width", "stride"}:
            raise ValueError(
                "latents must be a tokenizer that encodes to Latents: in training {ckpt: BUNDLE}, elsewhere a built one or {width, stride} "
                f"to describe a size; got {dict(latents)}"
            )
        return _ShapeOnly(int(latents["width"]), int(latents["stride"]), media_shape)
    spec = getattr(latents, "spec", None)
    if not isinstance(latents, nn.Module) or spec is None or spec.vocab_sizes or not isinstance(spec.grid, Raster):
        what = spec.describe() if isinstance(spec, TokenSpec) else "no tokenizer"
        raise ValueError(f"latents must be a tokenizer that encodes to Latents on a raster; {type(latents).__name__} makes {what}")
    if spec.media_shape[0] != media_shape[0]:
        raise ValueError(f"the tokenizer inside takes media of {spec.media_shape[0]} channel(s), the data have {media_shape[0]}")
    return latents.requires_grad_(False).eval()


class _ShapeOnly(nn.Module):
    """Stands for an inner tokenizer on the meta device, where nothing but shapes is computed."""

    def __init__(self, width: int, stride: int, media_shape: Sequence[int]):
        super().__init__()
        channels, h, w = media_shape
        self.stride = stride
        self.spec = TokenSpec((), Raster(h // stride, w // stride), width=width, media_shape=(channels, h, w))

    def _only_meta(self, x: Tensor) -> None:
        if not x.is_meta:
            raise ValueError("the tokenizer inside is not there, only its shape: give its bundle with tokenizer.latents.ckpt=BUNDLE")

    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Latents:
        self._only_meta(media)
        h, w = (n // self.stride for n in media.shape[2:])
        spec = TokenSpec((), Raster(h, w), width=self.spec.width, media_shape=tuple(media.shape[1:]))
        return Latents(torch.empty(len(media), spec.width, h * w, device="meta"), spec)

    def decode(self, tokens: Latents, rng: RowRNG | None = None) -> Tensor:
        self._only_meta(tokens.values)
        return torch.empty(len(tokens.values), *tokens.spec.media_shape, device="meta")
