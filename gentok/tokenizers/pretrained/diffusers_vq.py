"""diffusers' VQModel (the VQ-f4, f8, f16 autoencoders of latent diffusion, arXiv 2112.10752).

    z = quant_conv(encoder(media));  code = argmin |z - row|;  media = decoder(post_quant_conv(row))

`scaling_factor` is of models that diffuse the latents and takes no part in codes. Deviation in fine-tuning: the library's quantizer weighs
the two VQ terms the wrong way round (a known slip it keeps for old results); here they are as in the VQ-VAE paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentok.interfaces import LocalPath, Loss
from gentok.tokenizers.pretrained.base import PretrainedVQ, Table
from gentok.tokenizers.pretrained.diffusers_base import DiffusersModel

__all__ = ["DiffusersVQ"]


class DiffusersVQ(DiffusersModel, PretrainedVQ, id="tokenizer/diffusers_vq"):
    """path: a folder of VQModel.save_pretrained or a hub name, with `subfolder` where the model lies in a pipeline ("vqvae"); or config."""

    model_name = "VQModel"

    def __init__(
        self,
        media_shape: Sequence[int],
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        losses: Loss | None = None,
    ):
        super().__init__(path, config, losses, subfolder)
        settings = self.model.config
        self._finish(media_shape, settings.in_channels, 2 ** (len(settings.block_out_channels) - 1), Table(self.model.quantize.embedding))

    @property
    def last_layer(self) -> Tensor:
        return self.model.decoder.conv_out.weight

    def _features(self, media: Tensor) -> Tensor:
        return self.model.encode(media).latents

    def _pictures(self, vectors: Tensor) -> Tensor:
        spatial = vectors if self.model.config.norm_type == "spatial" else None
        return self.model.decoder(self.model.post_quant_conv(vectors), spatial)
