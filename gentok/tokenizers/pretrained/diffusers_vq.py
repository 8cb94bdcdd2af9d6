"""diffusers' VQModel (the VQ-f4, f8, f16 autoencoders of latent diffusion, arXiv 2112.10752).

    z = quant_conv(encoder(media));  code = argmin |z - row|;  media = decoder(post_quant_conv(row))

`scaling_factor` is of models that diffuse the latents and takes no part in codes. Deviation in fine-tuning: the library's quantizer weighs
the two VQ terms the wrong way round (a known slip it keeps for old results); here they are as in the VQ-VAE paper.
"""

from __future__ import annotations

from torch import Tensor

from gentok.tokenizers.pretrained.base import Pretrained

__all__ = ["DiffusersVQ"]


class DiffusersVQ(Pretrained, id="tokenizer/diffusers_vq"):
    """A VQModel of diffusers; in a pipeline it lies in the subfolder "vqvae"."""

    library = "diffusers"
    model_name = "VQModel"
    stages = "block_out_channels"

    def features(self, media: Tensor) -> Tensor:
        return self.model.encode(media).latents

    def to_media(self, vectors: Tensor) -> Tensor:
        vectors = vectors.contiguous()  # as the library has it: another layout rounds otherwise
        spatial = vectors if self.model.config.norm_type == "spatial" else None
        return self.model.decoder(self.model.post_quant_conv(vectors), spatial)
