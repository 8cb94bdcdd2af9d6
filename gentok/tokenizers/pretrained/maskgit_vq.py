"""MaskGIT's image tokenizer (Chang et al., arXiv 2202.04200), with released weights or to be trained.

    z = encoder(media);  code = argmin |z - row|;  media = decoder(row)

Read is maskgit-vqgan-imagenet-f16-256.bin of bytedance/1d-tokenizer (Apache-2.0, as the release for JAX that it was made of): 16 x 16
pixels per code, 1,024 codes of 256 channels. RAR's generators are over its codes. The networks are gentok's (gentok/nn/maskgit_vqgan.py).
The release's images are in [0, 1], here they are in [-1, 1] as everywhere.
"""

from __future__ import annotations

import re

from torch import Tensor

from gentok.nn.autoencoder import ConvSettings
from gentok.nn.maskgit_vqgan import MaskGITDecoder, MaskGITEncoder, maskgit_layers
from gentok.tokenizers.pretrained.released_vqgan import ConvolutionalVQGAN

__all__ = ["MaskGITVQ"]


class MaskGITVQ(ConvolutionalVQGAN, id="tokenizer/maskgit_vq"):
    """A VQGAN with MaskGIT's networks whose codebook is a VQ without projections."""

    model = "MaskGIT VQGAN"
    files = ("maskgit-vqgan*.bin", "*.bin", "*.safetensors")
    known = re.compile(r"decoder\.up\.1\.upsample_conv\.weight")
    released_by = "MaskGIT's tokenizer"
    of_a_block = {"skip": ("nin_shortcut",), "conv": ("upsample_conv",)}
    encoder_class, decoder_class = MaskGITEncoder, MaskGITDecoder

    def features(self, media: Tensor) -> Tensor:
        return self.encoder((media + 1) / 2)

    def to_media(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors) * 2 - 1

    def layers(self, settings: ConvSettings, side: str) -> list[str]:
        return maskgit_layers(len(settings.multipliers), settings.blocks, side)

    def outside(self) -> dict[str, str]:
        return {"codebook.weight": "quantize.embedding.weight"}
