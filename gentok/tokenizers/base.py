"""What image tokenizers share: the check of what they are given, and the spec of an image of another size."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gentok.tokens import Latents, Raster, TokenSpec

__all__ = ["check_images", "check_latents", "sized_spec"]


def check_images(media: Tensor, channels: int, stride: int) -> None:
    """Raises ValueError unless media is float [B, channels, H, W] with H and W multiples of `stride`."""
    if media.dim() != 4 or not media.is_floating_point():
        raise ValueError(f"this tokenizer takes float images [B, {channels}, H, W] in [-1, 1]; got {media.dtype} {tuple(media.shape)}")
    if media.shape[1] != channels:
        raise ValueError(f"this tokenizer takes images of {channels} channel(s), got {media.shape[1]}: convert them")
    h, w = media.shape[2:]
    if h % stride or w % stride or not h or not w:
        raise ValueError(f"this tokenizer takes heights and widths that {stride} divides, got {h} x {w}: resize, pad or crop the images")


def check_latents(latents: Latents, spec: TokenSpec) -> None:
    """Raises ValueError unless these are latents [B, D, h * w] of a raster, of the width of `spec`."""
    if not isinstance(latents, Latents):
        raise ValueError(f"this tokenizer decodes Latents of width {spec.width}; got {type(latents).__name__}")
    grid, shape = latents.spec.grid, tuple(latents.values.shape)
    if not isinstance(grid, Raster) or len(shape) != 3 or shape[1:] != (spec.width, grid.positions):
        raise ValueError(f"this tokenizer decodes latents [B, {spec.width}, h * w] of a raster; got {shape} on {grid}")


def sized_spec(spec: TokenSpec, media: Tensor, stride: int) -> TokenSpec:
    """`spec` itself where media has its size, else a copy with media's grid and shape."""
    shape = tuple(media.shape[1:])
    if shape == spec.media_shape:
        return spec
    return replace(spec, grid=Raster(shape[1] // stride, shape[2] // stride), media_shape=shape)
