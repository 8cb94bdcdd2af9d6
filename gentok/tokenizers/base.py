"""Image tokenizers: encode, decode and forward, written once.

    z = features(media);   vectors, codes = codebook(z);   reconstruction = to_media(vectors);   loss = losses + codebook terms

A subclass builds an `encoder`, a `codebook` and a `decoder`, and overrides `features` and `to_media` where the two networks alone are not
the whole way (docs/add_a_tokenizer.md). This class checks what is given, and makes the spec of images of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gentok.errors import counted
from gentok.interfaces import Codebook, Loss, Tokenizer
from gentok.precision import at_least_float32
from gentok.rng import RowRNG
from gentok.settings import PositiveInt, PositiveInts
from gentok.types import Batch, Raster, TokenizerOutput, Tokens, TokenSpec

__all__ = ["ImageTokenizer"]


class ImageTokenizer(Tokenizer):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens on the grid that the codebook makes of H / stride x W / stride cells.

    Images of other sizes than the data's are taken too, if the stride divides them and the codebook has a grid for them (a pyramid has
    one size). Their tokens have a spec of their own.

    Attributes:
        encoder, decoder: the networks of `features` and `to_media`.
        stride: pixels per side of a cell.
        losses: (reconstruction, media) -> {name: weighted scalar}; None where it is never trained.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        media_shape: PositiveInts,
        stride: PositiveInt,
        codebook: Codebook | None,
        losses: Loss | None = None,
        width: PositiveInt | None = None,
    ):
        """Makes the spec. A subclass sets `self.codebook` itself, at its place among the networks: optimizers number the parameters.

        Args:
            media_shape: (C, H, W) of the data.
            stride: pixels per side of a cell.
            codebook: of the tokens; None where there are Latents instead.
            losses: (reconstruction, media) -> {name: weighted scalar}; None where it is never trained.
            width: channels of the Latents.

        Raises:
            ValueError: the stride does not divide the height and the width, or the codebook has no grid for them.
        """
        super().__init__()
        shape, name = tuple(int(n) for n in media_shape), type(self).__name__
        if len(shape) != 3:
            raise ValueError(f"{name} needs media_shape = (channels, height, width); got {shape}")
        if shape[1] % stride or shape[2] % stride:
            raise ValueError(
                f"{name} takes heights and widths that {stride} divides; the data has {shape[1]} x {shape[2]}: resize or pad it "
                "(data.size), or change the settings that make the stride (patch, multipliers)"
            )
        self.stride, self.losses = stride, losses
        self.spec = TokenSpec(
            vocab_sizes=() if codebook is None else tuple(codebook.vocab_sizes),
            **_grid_fields(shape[1] // stride, shape[2] // stride, codebook),
            width=width,
            nested_levels=codebook is not None and codebook.nested_levels,
            media_shape=shape,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    # ---------------------------------------------------------------------------------------------------------- hooks

    def features(self, media: Tensor) -> Tensor:
        """media float [B, C, H, W], of the parameters' dtype -> what the codebook takes, [B, in_width, H / stride, W / stride]."""
        return self.encoder(media)

    def to_media(self, vectors: Tensor) -> Tensor:
        """vectors float [B, D, H / stride, W / stride] of the codebook -> media [B, C, H, W], unclamped."""
        return self.decoder(vectors)

    def sized_spec(self, shape: tuple[int, ...]) -> TokenSpec:
        """The spec of media of another shape (C, H, W). Raises ValueError where the codebook has no grid for it."""
        h, w = (n // self.stride for n in shape[1:])
        return replace(self.spec, **_grid_fields(h, w, self.codebook), media_shape=shape)

    # ---------------------------------------------------------------------------------------------------------- the three

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens:
        """media float [B, C, H, W] -> Tokens [B, K, N]. Changes no buffer, also in training mode. Images have no lengths."""
        spec = self.check_media(media)
        return Tokens(self.codebook.encode(self.features(media.to(self.dtype)).flatten(2), rng), spec)

    def prequantized(self, media: Tensor, lengths: Tensor | None = None) -> Tensor:
        if type(self).encode is not ImageTokenizer.encode:  # a subclass's own may quantise something else
            return super().prequantized(media)
        self.check_media(media)
        return self.features(media.to(self.dtype)).flatten(2)

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        """Tokens [B, K, N] -> media float32 [B, C, H, W] in [-1, 1]; absent levels add nothing."""
        cells = self.cells_of(tokens)
        return self.painted(self.codebook.lookup(tokens.codes), cells).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction is unclamped, with gradient; the losses are those of `losses` and of the codebook."""
        spec = self.check_media(batch.media)
        return self.trained(batch.media, spec, self.features(batch.media.to(self.dtype)), rng)

    # ---------------------------------------------------------------------------------------------------------- their parts

    def trained(
        self, media: Tensor, spec: TokenSpec, z: Tensor, rng: RowRNG | None, further: Callable[[Tensor], dict[str, Tensor]] | None = None
    ) -> TokenizerOutput:
        """What `forward` does from the features on.

        Args:
            media: float [B, C, H, W].
            spec: of their tokens.
            z: float [B, in_width, h, w], their features.
            rng: of the codebook.
            further: vectors float [B, D, M] -> further losses {name: weighted scalar}.
        """
        quantized = self.codebook(z.flatten(2), rng=rng)
        reconstruction = self.painted(quantized.vectors, z.shape[2:])
        losses = {**quantized.losses, **(further(quantized.vectors) if further else {}), **self.losses_of(reconstruction, media)}
        return TokenizerOutput(Tokens(quantized.codes, spec), losses, reconstruction)

    def losses_of(self, reconstruction: Tensor, media: Tensor) -> dict[str, Tensor]:
        """Those of `losses`; {} where there are none."""
        return {} if self.losses is None else self.losses(reconstruction, media)

    def painted(self, vectors: Tensor, cells: Sequence[int]) -> Tensor:
        """vectors float [B, D, h * w], cells (h, w) -> media [B, C, H, W], unclamped, float32 (float64 in a float64 model)."""
        return at_least_float32(self.to_media(vectors.to(self.dtype).unflatten(2, tuple(cells))))

    def check_media(self, media: Tensor) -> TokenSpec:
        """The spec of the tokens of these media. Raises ValueError unless they are float [B, C, H, W] of a size that fits."""
        channels = self.spec.media_shape[0]
        if media.dim() != 4 or not media.is_floating_point():
            raise ValueError(f"this tokenizer takes float images [B, {channels}, H, W] in [-1, 1]; got {media.dtype} {tuple(media.shape)}")
        if media.shape[1] != channels:
            raise ValueError(f"this tokenizer takes images of {counted(channels, 'channel')}, got {media.shape[1]}: convert them")
        h, w = media.shape[2:]
        if h % self.stride or w % self.stride or not h or not w:
            raise ValueError(
                f"this tokenizer takes heights and widths that {self.stride} divides, got {h} x {w}: resize, pad or crop the images"
            )
        shape = tuple(media.shape[1:])
        return self.spec if shape == self.spec.media_shape else self.sized_spec(shape)

    def cells_of(self, tokens: Tokens) -> tuple[int, int]:
        """(h, w) of the feature map that tokens decode to: a raster's own, else that of the media shape in their spec.

        Raises:
            ValueError: they are another tokenizer's, or their number or grid is not what the codebook makes of such a map.
        """
        self.check_tokens(tokens)
        grid, shape, media = tokens.spec.grid, tuple(tokens.codes.shape), tokens.spec.media_shape
        if isinstance(grid, Raster):
            h, w = grid.h, grid.w
        elif media is None or len(media) != 3:
            raise ValueError(
                "this tokenizer decodes codes [B, K, h * w] of a raster, or of another grid whose spec has media_shape = "
                f"(channels, height, width); got {shape} on {grid} with media_shape {media}"
            )
        else:
            h, w = media[1] // self.stride, media[2] // self.stride
        expected = self.codebook.grid(h, w)
        if grid != expected or shape[2] != grid.positions:
            kind = "h * w] of a raster" if isinstance(expected, Raster) else f"{expected.positions}] on {expected}"
            raise ValueError(f"this tokenizer decodes codes [B, K, {kind}; got {shape} on {grid}")
        return h, w


def _grid_fields(h: int, w: int, codebook: Codebook | None) -> dict[str, Any]:
    """The fields of the spec of h x w cells: the codebook's own grid, a raster where there is none."""
    grid = Raster(h, w) if codebook is None else codebook.grid(h, w)
    return {"grid": grid, "latent_positions": None if grid.positions == h * w else h * w}
