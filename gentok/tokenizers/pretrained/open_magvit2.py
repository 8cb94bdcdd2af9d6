"""Open-MAGVIT2's image tokenizers (Luo et al., arXiv 2409.04410), with released weights or to be trained.

    z = encoder(media);  code = the signs of z as bits;  media = decoder(sign z)

Read are the files of TencentARC/SEED-Voken (Apache-2.0): imagenet_256_L.ckpt (16 x 16 pixels per code of 18 bits), imagenet_128_L.ckpt
(8 x 8) and those of 14 bits. The networks are gentok's (gentok/nn/magvit2.py). Where a file holds moving averages of the weights, those are
read, with which the release is measured; its losses are left out. Its video tokenizer is not read.
"""

from __future__ import annotations

import re

from torch import Tensor

from gentok.interfaces import LocalPath
from gentok.nn.autoencoder import ConvSettings
from gentok.nn.magvit2 import MAGVIT2Decoder, MAGVIT2Encoder, ShuffleUp, magvit2_layers
from gentok.nn.released import channels_outermost
from gentok.tokenizers.pretrained.ibq_vq import averaged
from gentok.tokenizers.pretrained.released_vqgan import ConvolutionalVQGAN

__all__ = ["OpenMAGVIT2"]


class OpenMAGVIT2(ConvolutionalVQGAN, id="tokenizer/open_magvit2"):
    """A VQGAN with MAGVIT-v2's networks whose codebook is an LFQ without projections."""

    model = "Open-MAGVIT2 tokenizer"
    files = ("imagenet_256*.ckpt", "*.ckpt", "*.safetensors")
    known = re.compile(r"decoder\.adaptive\.0\.gamma\.weight")
    released_by = "an image tokenizer of Open-MAGVIT2"
    of_a_block = {"skip": ("nin_shortcut",), "conv": ("conv1",)}
    encoder_class, decoder_class = MAGVIT2Encoder, MAGVIT2Decoder

    def layers(self, settings: ConvSettings, side: str) -> list[str]:
        return magvit2_layers(len(settings.multipliers), settings.blocks, side)

    def outside(self) -> dict[str, str]:
        return {}

    def check_release(self, state: dict[str, Tensor], path: LocalPath, settings: ConvSettings) -> dict[str, Tensor]:
        return averaged(state)

    def put(self) -> None:
        for layer in self.decoder.body:
            if isinstance(layer, ShuffleUp):
                channels_outermost(layer.conv, 2)
