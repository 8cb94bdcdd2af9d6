"""KL-regularised autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752, section 3.1 and appendix G).

    mean, log_variance = encoder(media);   z = mean + exp(log_variance / 2) * normal;   reconstruction = decoder(z)
    loss = reconstruction terms + weight * KL(N(mean, variance) | N(0, 1))
    Latents = (z - shift) / scale        so that what models them sees about unit variance (appendix G)

Deviations: the release sums errors, perceptual terms and KL over an item, here all are means per value of the media (C * H * W), which
leaves their ratio, hence the meaning of `weight`, as published. The paper takes `scale` from the first batch and knows no `shift`; here
both are running averages over training, so they belong to the encoder that the bundle holds; `scaling` fixes them as a published number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gentok.distributed import all_sum
from gentok.interfaces import Loss, Tokenizer
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, stride_of
from gentok.rng import RowRNG
from gentok.tokenizers.base import check_images, check_latents, sized_spec
from gentok.types import Batch, Latents, Raster, TokenizerOutput, TokenSpec

__all__ = ["KL", "gaussian_kl", "sampled"]

CLAMP = (-30.0, 20.0)
"""Bounds of the log variance, as released."""


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) | N(0, 1)) in nats, elementwise, float like the inputs."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def sampled(mean: Tensor, log_variance: Tensor, rng: RowRNG | None) -> Tensor:
    """A draw of N(mean, exp(log_variance)), [B, D, N], from the rows' streams; the mean itself without noise."""
    if rng is None:
        return mean
    return mean + (0.5 * log_variance).exp() * rng.normal(*mean.shape[1:]).to(mean)


class KL(Tokenizer, id="tokenizer/kl"):
    """Images float [B, C, H, W] in [-1, 1] <-> Latents [B, D, N] on a raster of H / stride x W / stride.

    latent: D. weight: of the KL term. scaling: latents are (z - shift) / scale with measured shift and scale where it is null, and
    z * scaling where it is a number (0.18215, 0.2325, ...). decay: of the measured averages, per training step.
    media_shape, losses, width, multipliers, blocks, attention, patch, decoder_width: as in gentok.tokenizers.vqgan.
    """

    def __init__(
        self,
        media_shape: Sequence[int],
        losses: Loss | None = None,
        latent: int = 4,
        weight: float = 1e-6,
        scaling: float | None = None,
        decay: float = 0.99,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = False,
        patch: int = 2,
        decoder_width: int | None = None,
    ):
        super().__init__()
        if len(media_shape) != 3:
            raise ValueError(f"kl needs media_shape = (channels, height, width); got {tuple(media_shape)}")
        if latent < 1 or weight < 0 or not 0 <= decay < 1 or (scaling is not None and scaling <= 0):
            raise ValueError(
                f"kl needs latent >= 1, weight >= 0, decay in [0, 1) and scaling > 0 or null; "
                f"got latent={latent}, weight={weight}, decay={decay}, scaling={scaling}"
            )
        channels, height, side = (int(n) for n in media_shape)
        self.stride = stride_of(multipliers, patch)
        if height % self.stride or side % self.stride:
            raise ValueError(
                f"kl with {len(multipliers)} multipliers and patch {patch} takes sizes that {self.stride} divides; "
                f"the data has {height} x {side}: resize or pad it, or change multipliers or patch"
            )
        common = {"multipliers": tuple(multipliers), "blocks": blocks, "attention": attention, "patch": patch}
        self.encoder = ConvEncoder(channels, 2 * latent, width=width, **common)
        self.decoder = ConvDecoder(channels, latent, width=decoder_width or width, **common)
        self.codebook = None
        self.losses, self.weight, self.scaling, self.decay = losses, weight, scaling, decay
        # running sums of a geometric weight: its total, and the averages of z and z^2 that it weighs
        self.register_buffer("moments", torch.zeros(3))
        self.spec = TokenSpec(
            vocab_sizes=(), width=latent, grid=Raster(height // self.stride, side // self.stride), media_shape=(channels, height, side)
        )

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    def scale(self) -> tuple[Tensor, Tensor]:
        """(shift, scale), float32 scalars: latents = (z - shift) / scale. (0, 1) before anything was measured."""
        if self.scaling is not None:
            return self.moments.new_zeros((), dtype=torch.float32), self.moments.new_tensor(1.0 / self.scaling, dtype=torch.float32)
        total, first, second = self.moments.float()
        seen = total > 0
        mean = torch.where(seen, first / total.clamp(min=1e-12), 0.0)
        variance = torch.where(seen, second / total.clamp(min=1e-12) - mean.square(), 1.0)
        return mean, variance.clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def _measure(self, z: Tensor) -> None:
        z = z.detach().double()
        sums = all_sum(torch.stack([torch.full_like(z.sum(), z.numel()), z.sum(), z.square().sum()]))
        self.moments.lerp_((sums / sums[0]).to(self.moments), 1.0 - self.decay)

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor, TokenSpec]:
        """media float [B, C, H, W] -> mean and log variance [B, D, N], float32 (float64 in a float64 model), and their spec."""
        check_images(media, self.spec.media_shape[0], self.stride)
        h = self.encoder(media.to(self.encoder.stem.weight.dtype)).flatten(2)
        mean, log_variance = (h if h.dtype == torch.float64 else h.float()).chunk(2, dim=1)
        return mean, log_variance.clamp(*CLAMP), sized_spec(self.spec, media, self.stride)

    def _latents(self, z: Tensor, spec: TokenSpec) -> Latents:
        shift, scale = self.scale()
        return Latents((z - shift) / scale, spec)

    def _media(self, z: Tensor, grid: Raster) -> Tensor:
        media = self.decoder(z.to(self.decoder.stem.weight.dtype).unflatten(2, (grid.h, grid.w)))
        return media if media.dtype == torch.float64 else media.float()

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Latents:
        """media float [B, C, H, W] -> Latents [B, D, N], scaled: the mean, or a draw from `noise`. Changes no buffer."""
        mean, log_variance, spec = self.posterior(media)
        return self._latents(sampled(mean, log_variance, rng), spec)

    @torch.no_grad()
    def decode(self, tokens: Latents, rng: RowRNG | None = None) -> Tensor:
        """Latents [B, D, N] -> media float32 [B, C, H, W] in [-1, 1]."""
        check_latents(tokens, self.spec)
        shift, scale = self.scale()
        return self._media(tokens.values * scale + shift, tokens.spec.grid).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction of a draw (of the mean without noise), unclamped, with gradient. Training measures shift and scale."""
        mean, log_variance, spec = self.posterior(batch.media)
        z = sampled(mean, log_variance, rng)
        if self.training:
            self._measure(z)
        reconstruction = self._media(z, spec.grid)
        per_value = gaussian_kl(mean, log_variance).sum() / batch.media.numel()
        losses = {"kl": self.weight * per_value}
        if self.losses is not None:
            losses.update(self.losses(reconstruction, batch.media))
        return TokenizerOutput(self._latents(z, spec), losses, reconstruction)
