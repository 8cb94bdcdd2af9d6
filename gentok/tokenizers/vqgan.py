"""VQGAN (Esser et al., arXiv 2012.09841; settings of LlamaGen, arXiv 2406.06525): convolutional features, quantized cell by cell.

    z = encoder(media);  vectors, codes = codebook(z);  reconstruction = decoder(vectors);  loss = reconstruction terms + codebook terms

Works with any codebook that makes a grid of the cells of the feature map: a raster of one code per cell, or a pyramid. The adversarial
term of the papers belongs to the training loop, since a discriminator is no part of the tokenizer.

Deviations: the projections between the network's features and a low-dimensional codebook are the codebook's own (its `in_width` and
`width` are what the network sees).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from gentok.interfaces import Codebook, Loss
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, ConvOptions, ConvSettings
from gentok.settings import PositiveInts
from gentok.tokenizers.base import ImageTokenizer

__all__ = ["VQGAN"]


class VQGAN(ImageTokenizer, id="tokenizer/vqgan"):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens of H / stride x W / stride cells, stride = patch * 2^(len(multipliers) - 1).

    Attributes:
        settings_class: of its networks.
    """

    settings_class: ClassVar[type[ConvSettings]] = ConvSettings

    def __init__(self, codebook: Codebook, media_shape: PositiveInts, losses: Loss | None = None, **networks: ConvOptions):
        """
        Args:
            codebook: any codebook.
            media_shape: (C, H, W) of the data.
            losses: (reconstruction, media) -> {name: weighted scalar}; None where it is never trained.
            networks: as in gentok.nn.autoencoder.ConvSettings.

        Raises:
            ValueError: the stride does not divide the height and the width.
        """
        settings = self.settings_class(**networks)
        super().__init__(media_shape, settings.stride, codebook, losses)
        channels = self.spec.media_shape[0]
        encoder, decoder = self.networks(channels, codebook, settings)
        self.encoder = encoder
        self.codebook = codebook
        self.decoder = decoder

    def networks(self, channels: int, codebook: Codebook, settings: ConvSettings) -> tuple[nn.Module, nn.Module]:
        """The encoder and the decoder."""
        return ConvEncoder(channels, codebook.in_width, settings), ConvDecoder(channels, codebook.width, settings)

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight
