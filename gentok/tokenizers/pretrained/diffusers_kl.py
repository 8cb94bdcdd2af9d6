"""diffusers' AutoencoderKL (Stable Diffusion 1 to 3, FLUX; arXiv 2112.10752, appendix G): images <-> Latents.

    Latents = (z - shift_factor) * scaling_factor,   z the posterior's mean, or a draw

with the factors of the model's configuration, as diffusers' pipelines apply them (shift null: 0).
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from gentok.settings import NonNegativeFloat
from gentok.tokenizers.kl import GaussianLatents
from gentok.tokenizers.pretrained.base import Pretrained

__all__ = ["DiffusersKL"]


class DiffusersKL(Pretrained, GaussianLatents, id="tokenizer/diffusers_kl"):
    """An AutoencoderKL of diffusers; in a pipeline it lies in the subfolder "vae"."""

    library = "diffusers"
    model_name = "AutoencoderKL"
    stages = "block_out_channels"
    quantized = False

    def __init__(self, *, weight: NonNegativeFloat = 1e-6, **model: Annotated[Any, Pretrained]):
        """
        Args:
            weight: of the KL term in fine-tuning, per value of the media.
            model: as of Pretrained.
        """
        super().__init__(**model)
        self.weight = weight
        self.factor, self.shift = self.model.config.scaling_factor or 1.0, self.model.config.shift_factor or 0.0

    def features(self, media: Tensor) -> Tensor:
        h = self.model.encoder(media)
        return h if self.model.quant_conv is None else self.model.quant_conv(h)

    def to_media(self, vectors: Tensor) -> Tensor:
        return self.model.decode(vectors).sample

    def scaled(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.factor

    def unscaled(self, values: Tensor) -> Tensor:
        return values / self.factor + self.shift

    def kl_loss(self, total: Tensor, values: int) -> Tensor:
        return self.weight * total / values  # rounded as in earlier releases
