"""The multi-period discriminator of HiFi-GAN (Kong et al., arXiv 2010.05646, section 2.3), as DAC uses it as well.

For each period p, a wave of T samples becomes an image [B, C, T / p, p], whose columns are every p-th sample; convolutions 5 x 1 never mix
columns:

    four of stride 3 and one of stride 1, of 1, 4, 16, 32 and 32 times `width` channels, LeakyReLU(0.1);  3 x 1 to the logits

with weight normalisation. A wave that p does not divide is reflected at its end. Deviation: DAC's code adds a whole reflected period where
p divides T; here, as in HiFi-GAN, nothing is added then.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gentok.nn.waveform_discriminator import WaveformDiscriminators, convolution, features_of
from gentok.settings import NonNegativeFloat, PositiveInt, PositiveInts

__all__ = ["PeriodDiscriminators"]


class PeriodDiscriminators(WaveformDiscriminators, id="discriminator/multi_period"):
    """media float [B, C, T] -> (logits, features), one of each per period p: float [B, 1, ., p], and five [B, channels, ., p].

    Args:
        channels: C.
        periods: in samples, commonly primes; T must be at least twice the longest.
        width: channels of the first layer.
        peak: see gentok.nn.waveform_discriminator.levelled.

    Raises:
        ValueError: sizes or periods below 1.
    """

    def __init__(
        self,
        channels: PositiveInt = 1,
        periods: PositiveInts = (2, 3, 5, 7, 11),
        width: PositiveInt = 32,
        peak: NonNegativeFloat | None = None,
    ):
        if min(channels, width) < 1 or not periods or min(periods) < 1:
            raise ValueError(
                f"period discriminators need channels, width and periods of at least 1; got {channels}, {width}, {list(periods)}"
            )
        super().__init__(channels, peak, 2 * max(periods), (_PeriodDiscriminator(channels, period, width) for period in periods))


class _PeriodDiscriminator(nn.Module):
    def __init__(self, channels: int, period: int, width: int):
        super().__init__()
        self.period = period
        widths = [channels, width, 4 * width, 16 * width, 32 * width, 32 * width]
        self.layers = nn.ModuleList(
            convolution(widths[i], widths[i + 1], (5, 1), stride=(3 if i < 4 else 1, 1), padding=(2, 0)) for i in range(5)
        )
        self.head = convolution(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        wave = wave.to(self.head.bias.dtype)
        x = F.pad(wave, (0, -wave.shape[-1] % self.period), mode="reflect").unflatten(-1, (-1, self.period))
        features = features_of(x, self.layers, 0.1)
        return self.head(features[-1]), features
