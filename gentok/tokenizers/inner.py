"""A tokenizer inside another: what a tokenizer takes for the frozen one that it works on.

The inner tokenizer is a child of the outer one, in eval mode and without gradient, and its settings are part of the outer one's: so a
bundle nests it. In a training run it is given as {ckpt: BUNDLE}; a few sizes beside it (`latent_sizes`, `speech_sizes`) let a
configuration be described where the bundle is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gentok.errors import counted
from gentok.interfaces import Tokenizer
from gentok.rng import RowRNG
from gentok.types import Frames, Latents, Raster, Tokens, TokenSpec

__all__ = ["frozen", "latent_sizes", "latent_tokenizer", "speech_sizes", "speech_tokenizer"]


def latent_sizes(spec: TokenSpec) -> dict[str, Any]:
    """{width, stride} of the latents of a tokenizer."""
    return {"width": spec.width, "stride": spec.media_shape[1] // spec.grid.h if isinstance(spec.grid, Raster) else None}


def speech_sizes(spec: TokenSpec) -> dict[str, Any]:
    """{vocab_size, hop, sample_rate} of a tokenizer of sound; {} of one that `speech_tokenizer` refuses."""
    if spec.levels != 1 or not isinstance(spec.grid, Frames):
        return {}
    return {"vocab_size": spec.vocab, "hop": round(spec.sample_rate / spec.grid.rate_hz), "sample_rate": spec.sample_rate}


def frozen(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, in eval mode and without gradient."""
    return tokenizer.requires_grad_(False).eval()


def latent_tokenizer(latents: Any, media_shape: Sequence[int]) -> Tokenizer:
    """The tokenizer inside one that works on latents.

    Args:
        latents: a built tokenizer that encodes to Latents on a raster, or {width, stride} to describe one.
        media_shape: (C, H, W) of the data.

    Returns:
        It, frozen; of sizes one that knows no more than the shape of its latents.

    Raises:
        ValueError: it is none of these, or of another number of channels.
    """
    channels, height, width = media_shape

    def described(sizes: Mapping[str, Any]) -> TokenSpec:
        stride = int(sizes["stride"])
        return TokenSpec((), Raster(height // stride, width // stride), width=int(sizes["width"]), media_shape=(channels, height, width))

    inner = _inner("latents", latents, ("width", "stride"), described, lambda spec: not spec.vocab_sizes and isinstance(spec.grid, Raster),
                   "a tokenizer that encodes to Latents on a raster")  # fmt: skip
    if inner.spec.media_shape[0] != channels:
        raise ValueError(f"the tokenizer inside takes media of {counted(inner.spec.media_shape[0], 'channel')}, the data have {channels}")
    return inner


def speech_tokenizer(speech: Any) -> Tokenizer:
    """The tokenizer of sound inside speech_text.

    Args:
        speech: a built tokenizer of sound of one level, or {vocab_size, hop, sample_rate} to describe one.

    Returns:
        It, frozen; of sizes one that has a spec and nothing else.

    Raises:
        ValueError: it is none of these.
    """

    def described(sizes: Mapping[str, Any]) -> TokenSpec:
        rate = sizes["sample_rate"]
        return TokenSpec((sizes["vocab_size"],), Frames(rate / sizes["hop"]), modality="audio", media_shape=(1,), sample_rate=rate)

    return _inner("speech", speech, ("vocab_size", "hop", "sample_rate"), described, lambda spec: bool(speech_sizes(spec)),
                  "a tokenizer of sound of one level (semantic_speech, single_codebook)")  # fmt: skip


def _inner(
    key: str,
    given: Any,
    sizes: Sequence[str],
    described: Callable[[Mapping[str, Any]], TokenSpec],
    fits: Callable[[TokenSpec], bool],
    wanted: str,
) -> Tokenizer:
    """`given` frozen, or of `sizes` one that is only described. key: of the configuration. fits: whether a spec is of the `wanted` kind."""
    if isinstance(given, Mapping):
        if given.get("ckpt") is not None or not set(sizes) <= set(given) <= {"ckpt", *sizes}:
            raise ValueError(
                f"{key} must be {wanted}: in training {{ckpt: BUNDLE}}, else a built one or {{{', '.join(sizes)}}} to describe one; "
                f"got {dict(given)}"
            )
        return _ShapeOnly(key, described(given))
    if not isinstance(given, Tokenizer) or not fits(given.spec):
        what = given.spec.describe() if isinstance(given, Tokenizer) else "no tokens"
        raise ValueError(f"{key} must be {wanted}; {type(given).__name__} makes {what}")
    return frozen(given)


class _ShapeOnly(Tokenizer):
    """Stands for an inner tokenizer of which only sizes are known: gives the shapes of latents on the meta device, and nothing else."""

    def __init__(self, key: str, spec: TokenSpec):
        super().__init__()
        self.key, self.spec, self.codebook = key, spec, None

    def _check(self, x: Tensor) -> None:
        if not x.is_meta or self.spec.vocab_sizes:
            raise ValueError(
                f"the tokenizer inside is not there, only its sizes are known: give its bundle with tokenizer.{self.key}.ckpt=BUNDLE"
            )

    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Latents:
        self._check(media)
        stride = self.spec.media_shape[1] // self.spec.grid.h
        grid = Raster(*(n // stride for n in media.shape[2:]))
        spec = replace(self.spec, grid=grid, media_shape=tuple(media.shape[1:]))
        return Latents(torch.empty(len(media), spec.width, grid.positions, device="meta"), spec)

    def decode(self, tokens: Latents | Tokens, rng: RowRNG | None = None, **options: Any) -> Tensor:
        self._check(tokens.values if isinstance(tokens, Latents) else tokens.codes)
        return torch.empty(len(tokens.values), *tokens.spec.media_shape, device="meta")
