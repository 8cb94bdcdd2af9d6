"""LlamaGen's image tokenizers (Sun et al., arXiv 2406.06525) as gentok's own VQGAN, with released weights or to be trained.

    z = quant_conv(encoder(media));  code = argmin |z / |z| - row / |row||;  media = decoder(post_quant_conv(row / |row|))

The networks and the codebook are gentok's; no other library is needed. Read are the files of FoundationVision/LlamaGen (MIT licence):
vq_ds16_c2i.pt and vq_ds16_t2i.pt (VQ-16, 16 x 16 pixels per code) and vq_ds8_c2i.pt (VQ-8).

In training, the terms of the codebook are the same; those of the reconstruction are what `losses` says.
"""

from __future__ import annotations

import re

from torch import Tensor

from gentok.interfaces import LocalPath
from gentok.nn.autoencoder import ConvSettings
from gentok.tokenizers.pretrained.released_vqgan import ReleasedVQGAN, llamagen_layers, projections

__all__ = ["LlamaGenVQ"]

STAGE = re.compile(r"encoder\.conv_blocks\.(\d+)\.res\.0\.conv1\.weight")
"""The first block of a resolution."""


class LlamaGenVQ(ReleasedVQGAN, id="tokenizer/llamagen_vq"):
    """A VQGAN of one pixel per square whose codebook is a VQ of unit vectors, with projections."""

    model = "LlamaGen VQ"
    files = ("vq_ds*.pt", "*.safetensors")
    known = STAGE
    released_by = "a tokenizer of LlamaGen"
    ignored = ("quantize.codebook_used",)

    def layers(self, settings: ConvSettings, side: str) -> list[str]:
        return llamagen_layers(settings, side)

    def outside(self) -> dict[str, str]:
        return {"codebook.weight": "quantize.embedding.weight", **projections()}

    def check_release(self, state: dict[str, Tensor], path: LocalPath, settings: ConvSettings) -> dict[str, Tensor]:
        stages, here = sum(STAGE.fullmatch(key) is not None for key in state), len(settings.multipliers)
        if stages != here:
            raise ValueError(
                f"{path} is LlamaGen's VQ-{2 ** (stages - 1)}, configured is VQ-{2 ** (here - 1)}: tokenizer.multipliers is [1,1,2,2,4] "
                "for VQ-16 and [1,2,2,4] for VQ-8"
            )
        return state
