"""What image tokenizers share: checks of what they are given, and the spec of an image of another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from gentok.types import Latents, Raster, Tokens, TokenSpec

__all__ = ["cells_of", "check_images", "check_latents", "grid_fields", "sized_spec"]


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


def grid_fields(h: int, w: int, codebook: Any = None) -> dict[str, Any]:
    """The fields `grid` and `latent_positions` of the spec of h x w cells: the codebook's own grid, a raster where there is none."""
    grid = Raster(h, w) if codebook is None else codebook.grid(h, w)
    return {"grid": grid, "latent_positions": None if grid.positions == h * w else h * w}


def sized_spec(spec: TokenSpec, media: Tensor, stride: int, codebook: Any = None) -> TokenSpec:
    """`spec` itself where media has its size, else a copy with media's grid and shape. Raises ValueError where the codebook has no grid
    for it (a pyramid has one size)."""
    shape = tuple(media.shape[1:])
    if shape == spec.media_shape:
        return spec
    return replace(spec, **grid_fields(shape[1] // stride, shape[2] // stride, codebook), media_shape=shape)


def cells_of(tokens: Tokens, stride: int, codebook: Any) -> tuple[int, int]:
    """(h, w) of the feature map that tokens decode to: a raster's own, else that of the media shape in their spec. Raises ValueError
    where their number or grid is not what the codebook makes of such a map."""
    grid, shape, media = tokens.spec.grid, tuple(tokens.codes.shape), tokens.spec.media_shape
    if isinstance(grid, Raster):
        h, w = grid.h, grid.w
    elif media is None or len(media) != 3:
        raise ValueError(
            "this tokenizer decodes codes [B, K, h * w] of a raster, or of another grid whose spec has media_shape = "
            f"(channels, height, width); got {shape} on {grid} with media_shape {media}"
        )
    else:
        h, w = media[1] // stride, media[2] // stride
    expected = codebook.grid(h, w)
    if grid != expected or shape[2] != grid.positions:
        kind = "h * w] of a raster" if isinstance(expected, Raster) else f"{expected.positions}] on {expected}"
        raise ValueError(f"this tokenizer decodes codes [B, K, {kind}; got {shape} on {grid}")
    return h, w
