"""KL-regularised autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752, section 3.1 and appendix G).

    mean, log_variance = encoder(media);   z = mean + exp(log_variance / 2) * normal;   reconstruction = decoder(z)
    loss = reconstruction terms + weight * KL(N(mean, variance) | N(0, 1))
    Latents = (z - shift) / scale        so that what models them sees about unit variance (appendix G)

Deviations: the release sums errors, perceptual terms and KL over an item, here all are means per value of the media (C * H * W), which
leaves their ratio, hence the meaning of `weight`, as published. The paper takes `scale` from the first batch and knows no `shift`; here
both are running averages over training, so they belong to the encoder that the bundle holds; `scaling` fixes them as a published number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.distributed import all_sum
from gentok.interfaces import Loss
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, ConvOptions, ConvSettings
from gentok.precision import at_least_float32
from gentok.rng import RowRNG
from gentok.settings import FractionBelow1, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveInts
from gentok.tokenizers.base import ImageTokenizer
from gentok.types import Batch, Latents, Raster, TokenizerOutput

__all__ = ["KL", "GaussianLatents", "gaussian_kl", "sampled"]

CLAMP = (-30.0, 20.0)
"""Bounds of the log variance, as released."""


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) | N(0, 1)) in nats, elementwise, float like the inputs."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def sampled(mean: Tensor, log_variance: Tensor, rng: RowRNG | None) -> Tensor:
    """A draw of N(mean, exp(log_variance)), [B, D, N], from each row's random numbers; the mean itself without rng."""
    if rng is None:
        return mean
    return mean + (0.5 * log_variance).exp() * rng.normal(*mean.shape[1:]).to(mean)


class GaussianLatents(ImageTokenizer):
    """Images float [B, C, H, W] in [-1, 1] <-> Latents [B, D, N] on a raster, drawn from a normal posterior.

    `features` gives mean and log variance [B, 2 D, h, w]. A subclass says how z becomes Latents, `scaled`, and back, `unscaled`.

    Attributes:
        weight: of the KL term, per value of the media.
    """

    weight: float

    def scaled(self, z: Tensor) -> Tensor:
        """z as the decoder takes it -> the values of Latents."""
        raise NotImplementedError

    def unscaled(self, values: Tensor) -> Tensor:
        """The values of Latents -> z."""
        raise NotImplementedError

    def kl_loss(self, total: Tensor, values: int) -> Tensor:
        """The weighted KL term of `total` nats over so many values of the media."""
        return self.weight * (total / values)

    def measure(self, z: Tensor) -> None:
        """Called with every z of a training step."""

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """media float [B, C, H, W] -> mean and log variance [B, D, N], float32 (float64 in a float64 model)."""
        mean, log_variance = at_least_float32(self.features(media.to(self.dtype)).flatten(2)).chunk(2, dim=1)
        return mean, log_variance.clamp(*CLAMP)

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Latents:
        """media float [B, C, H, W] -> Latents [B, D, N], scaled: of the mean, or of a draw from `rng`. Changes no buffer."""
        spec = self.check_media(media)
        return Latents(self.scaled(sampled(*self.posterior(media), rng)), spec)

    @torch.no_grad()
    def decode(self, tokens: Latents, rng: RowRNG | None = None) -> Tensor:
        """Latents [B, D, N] -> media float32 [B, C, H, W] in [-1, 1]."""
        width = self.spec.width
        if not isinstance(tokens, Latents):
            raise ValueError(f"this tokenizer decodes Latents of width {width}; got {type(tokens).__name__}")
        grid, shape = tokens.spec.grid, tuple(tokens.values.shape)
        if not isinstance(grid, Raster) or len(shape) != 3 or shape[1:] != (width, grid.positions):
            raise ValueError(f"this tokenizer decodes latents [B, {width}, h * w] of a raster; got {shape} on {grid}")
        return self.painted(self.unscaled(tokens.values), (grid.h, grid.w)).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction of a draw (of the mean without rng), unclamped, with gradient; the losses are those of `losses` and the KL."""
        spec = self.check_media(batch.media)
        mean, log_variance = self.posterior(batch.media)
        z = sampled(mean, log_variance, rng)
        if self.training:
            self.measure(z)
        reconstruction = self.painted(z, (spec.grid.h, spec.grid.w))
        kl = self.kl_loss(gaussian_kl(mean, log_variance).sum(), batch.media.numel())
        return TokenizerOutput(Latents(self.scaled(z), spec), {"kl": kl, **self.losses_of(reconstruction, batch.media)}, reconstruction)


class KL(GaussianLatents, id="tokenizer/kl"):
    """Images float [B, C, H, W] in [-1, 1] <-> Latents [B, D, N] on a raster of H / stride x W / stride."""

    def __init__(
        self,
        media_shape: PositiveInts,
        losses: Loss | None = None,
        latent: PositiveInt = 4,
        weight: NonNegativeFloat = 1e-6,
        scaling: PositiveFloat | None = None,
        decay: FractionBelow1 = 0.99,
        **networks: ConvOptions,
    ):
        """
        Args:
            media_shape, losses, networks: as of gentok.tokenizers.vqgan.VQGAN.
            latent: D.
            weight: of the KL term.
            scaling: null: latents are (z - shift) / scale with measured shift and scale; a number (0.18215, 0.2325, ...): z * scaling.
            decay: of the measured averages, per training step.

        Raises:
            ValueError: a setting is out of its range, or the stride does not divide the height and the width.
        """
        settings = ConvSettings(**networks)
        super().__init__(media_shape, settings.stride, None, losses, latent)
        channels = self.spec.media_shape[0]
        self.encoder = ConvEncoder(channels, 2 * latent, settings)
        self.decoder = ConvDecoder(channels, latent, settings)
        self.codebook = None
        self.weight, self.scaling, self.decay = weight, scaling, decay
        # running sums of a geometric weight: its total, and the averages of z and z^2 that it weighs
        self.register_buffer("moments", torch.zeros(3))

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    def scale(self) -> tuple[Tensor, Tensor]:
        """(shift, scale), float32 scalars: latents = (z - shift) / scale. (0, 1) before anything was measured."""
        if self.scaling is not None:
            return self.moments.new_zeros((), dtype=torch.float32), self.moments.new_tensor(1.0 / self.scaling, dtype=torch.float32)
        total, first, second = self.moments.float()
        measured = total > 0
        mean = torch.where(measured, first / total.clamp(min=1e-12), 0.0)
        variance = torch.where(measured, second / total.clamp(min=1e-12) - mean.square(), 1.0)
        return mean, variance.clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def measure(self, z: Tensor) -> None:
        z = z.detach().double()
        sums = all_sum(torch.stack([torch.full_like(z.sum(), z.numel()), z.sum(), z.square().sum()]))
        self.moments.lerp_((sums / sums[0]).to(self.moments), 1.0 - self.decay)

    def scaled(self, z: Tensor) -> Tensor:
        shift, scale = self.scale()
        return (z - shift) / scale

    def unscaled(self, values: Tensor) -> Tensor:
        shift, scale = self.scale()
        return values * scale + shift
