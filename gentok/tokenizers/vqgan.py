"""VQGAN (Esser et al., arXiv 2012.09841; settings of LlamaGen, arXiv 2406.06525): convolutional features, quantized cell by cell.

    z = encoder(media);  vectors, codes = codebook(z);  reconstruction = decoder(vectors);  loss = reconstruction terms + codebook terms

Works with any codebook that makes a grid of the cells of the feature map: a raster of one code per cell, or a pyramid. The adversarial term
of the papers belongs to the training loop, since a discriminator is no part of the tokenizer. Deviation: the projections between the
network's features and a low-dimensional codebook are the codebook's own (its `in_width` and `width` are what the network sees).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gentok.interfaces import Codebook, Loss, Tokenizer
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, stride_of
from gentok.rng import RowRNG
from gentok.tokenizers.base import cells_of, check_images, grid_fields, sized_spec
from gentok.types import Batch, TokenizerOutput, Tokens, TokenSpec

__all__ = ["VQGAN"]


class VQGAN(Tokenizer, id="tokenizer/vqgan"):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens on the grid that the codebook makes of H / stride x W / stride cells,
    stride = patch * 2^(len(multipliers) - 1).

    codebook: any codebook. media_shape: (C, H, W) of the data; images of other sizes that the stride divides are taken as well where the
    codebook has a grid for them (a pyramid has one size), and their tokens carry a spec of their own. losses: (reconstruction, media) ->
    {name: weighted scalar}, or None where it is never trained.
    width, multipliers, blocks, attention, patch: see gentok.nn.autoencoder. decoder_width: the decoder's width where it differs.
    """

    def __init__(
        self,
        codebook: Codebook,
        media_shape: Sequence[int],
        losses: Loss | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = False,
        patch: int = 2,
        decoder_width: int | None = None,
    ):
        super().__init__()
        if len(media_shape) != 3:
            raise ValueError(f"vqgan needs media_shape = (channels, height, width); got {tuple(media_shape)}")
        channels, height, side = (int(n) for n in media_shape)
        self.stride = stride_of(multipliers, patch)
        if height % self.stride or side % self.stride:
            raise ValueError(
                f"vqgan with {len(multipliers)} multipliers and patch {patch} takes sizes that {self.stride} divides; "
                f"the data has {height} x {side}: resize or pad it, or change multipliers or patch"
            )
        common = {"multipliers": tuple(multipliers), "blocks": blocks, "attention": attention, "patch": patch}
        self.encoder = ConvEncoder(channels, codebook.in_width, width=width, **common)
        self.codebook = codebook
        self.decoder = ConvDecoder(channels, codebook.width, width=decoder_width or width, **common)
        self.losses = losses
        self.spec = TokenSpec(
            vocab_sizes=tuple(codebook.vocab_sizes),
            **grid_fields(height // self.stride, side // self.stride, codebook),
            nested_levels=codebook.nested_levels,
            media_shape=(channels, height, side),
        )

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    def _features(self, media: Tensor) -> tuple[Tensor, tuple[int, int], TokenSpec]:
        """media -> features float [B, D, M], their grid (h, w), and the spec of their tokens."""
        check_images(media, self.spec.media_shape[0], self.stride)
        spec = sized_spec(self.spec, media, self.stride, self.codebook)
        z = self.encoder(media.to(self.encoder.stem.weight.dtype))
        return z.flatten(2), tuple(z.shape[2:]), spec

    def _media(self, vectors: Tensor, cells: tuple[int, int]) -> Tensor:
        z = vectors.to(self.decoder.stem.weight.dtype).unflatten(2, cells)
        media = self.decoder(z)
        return media if media.dtype == torch.float64 else media.float()

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens:
        """media float [B, C, H, W] -> Tokens [B, K, N]. Changes no buffer, also in training mode. Images have no lengths."""
        z, _, spec = self._features(media)
        training = self.codebook.training
        self.codebook.eval()
        try:
            codes = self.codebook(z, rng=rng).codes
        finally:
            self.codebook.train(training)
        return Tokens(codes, spec)

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        """Tokens [B, K, N] -> media float32 [B, C, H, W] in [-1, 1]; absent levels add nothing."""
        if tokens.spec.vocab_sizes != self.spec.vocab_sizes:
            raise ValueError(f"these tokens are of another tokenizer: {tokens.spec.describe()}; this one makes {self.spec.describe()}")
        cells = cells_of(tokens, self.stride, self.codebook)
        return self._media(self.codebook.lookup(tokens.codes), cells).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction is unclamped, with gradient; losses are those of `losses` and of the codebook."""
        z, cells, spec = self._features(batch.media)
        quantized = self.codebook(z, rng=rng)
        reconstruction = self._media(quantized.vectors, cells)
        losses = dict(quantized.losses)
        if self.losses is not None:
            losses.update(self.losses(reconstruction, batch.media))
        return TokenizerOutput(Tokens(quantized.codes, spec), losses, reconstruction)
