"""diffusers' AutoencoderKL (Stable Diffusion 1 to 3, FLUX; arXiv 2112.10752, appendix G): images <-> Latents.

    Latents = (z - shift_factor) * scaling_factor,   z the posterior's mean, or a draw of it from `noise`

with the factors of the model's configuration, as diffusers' pipelines apply them (shift null: 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentok.interfaces import LocalPath, Loss
from gentok.rng import RowRNG
from gentok.tokenizers.base import check_latents
from gentok.tokenizers.kl import CLAMP, gaussian_kl, sampled
from gentok.tokenizers.pretrained.diffusers_base import DiffusersModel
from gentok.types import Batch, Latents, Raster, TokenizerOutput, TokenSpec

__all__ = ["DiffusersKL"]


class DiffusersKL(DiffusersModel, id="tokenizer/diffusers_kl"):
    """path: a folder of AutoencoderKL.save_pretrained or a hub name, with `subfolder` where it lies in a pipeline ("vae"); or config.
    weight: of the KL term in fine-tuning, per value of the media (see gentok.tokenizers.kl)."""

    model_name = "AutoencoderKL"

    def __init__(
        self,
        media_shape: Sequence[int],
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        weight: float = 1e-6,
        losses: Loss | None = None,
    ):
        super().__init__(path, config, losses, subfolder)
        settings = self.model.config
        self.codebook, self.weight = None, weight
        self.stride = 2 ** (len(settings.block_out_channels) - 1)
        shape = self._shape(media_shape, settings.in_channels)
        self.factor, self.shift = settings.scaling_factor or 1.0, settings.shift_factor or 0.0
        grid = Raster(shape[1] // self.stride, shape[2] // self.stride)
        self.spec = TokenSpec((), grid, width=settings.latent_channels, media_shape=shape)

    @property
    def last_layer(self) -> Tensor:
        return self.model.decoder.conv_out.weight

    def _posterior(self, media: Tensor) -> tuple[Tensor, Tensor, TokenSpec]:
        media, spec = self._media(media)
        h = self.model.encoder(media)
        h = (h if self.model.quant_conv is None else self.model.quant_conv(h)).flatten(2)
        mean, log_variance = (h if h.dtype == torch.float64 else h.float()).chunk(2, dim=1)
        return mean, log_variance.clamp(*CLAMP), spec

    def _pictures(self, z: Tensor, grid: Raster) -> Tensor:
        z = z.to(next(self.model.parameters()).dtype).unflatten(2, (grid.h, grid.w))
        media = self.model.decode(z).sample
        return media if media.dtype == torch.float64 else media.float()

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Latents:
        """media float [B, C, H, W] in [-1, 1] -> Latents [B, D, N], shifted and scaled: of the mean, or of a draw from `noise`."""
        mean, log_variance, spec = self._posterior(media)
        return Latents((sampled(mean, log_variance, rng) - self.shift) * self.factor, spec)

    @torch.no_grad()
    def decode(self, tokens: Latents, rng: RowRNG | None = None) -> Tensor:
        """Latents [B, D, N] -> media float32 [B, C, H, W] in [-1, 1]."""
        check_latents(tokens, self.spec)
        return self._pictures(tokens.values / self.factor + self.shift, tokens.spec.grid).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """For fine-tuning: the KL term and `losses`; the reconstruction is unclamped, with gradient."""
        mean, log_variance, spec = self._posterior(batch.media)
        z = sampled(mean, log_variance, rng)
        reconstruction = self._pictures(z, spec.grid)
        losses = {"kl": self.weight * gaussian_kl(mean, log_variance).sum() / batch.media.numel()}
        if self.losses is not None:
            losses.update(self.losses(reconstruction, batch.media))
        return TokenizerOutput(Latents((z - self.shift) * self.factor, spec), losses, reconstruction)
