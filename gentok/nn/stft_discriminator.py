"""The multi-scale STFT discriminator of EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438, section 3.4).

For each window, a network on the complex spectrogram, real and imaginary parts as channels [B, 2 C, frames, frequencies]:

    convolution 3 x 9;  convolutions 3 x 9 with dilations 1, 2, 4 in time and stride 2 in frequency;  convolution 3 x 3    each LeakyReLU
    convolution 3 x 3 to a logit per frame and frequency

as in the `encodec` package: frames a quarter of a window apart without padding, spectra over the root of the window's energy, weight
normalisation but in the first convolution, LeakyReLU(0.2) (audiocraft: 0.3). The STFT is float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gentok.nn.waveform_discriminator import WaveformDiscriminators, complex_spectrogram, convolution, features_of
from gentok.settings import NonNegativeFloat, PositiveInt, PositiveInts

__all__ = ["STFTDiscriminators"]


class STFTDiscriminators(WaveformDiscriminators, id="discriminator/ms_stft"):
    """media float [B, C, T] -> (logits, features), one of each per window: float [B, 1, frames, frequencies'], and, of every layer before
    them, [B, filters, frames, .].

    Args:
        channels: C.
        filters: channels of every layer.
        windows: in samples; T must be at least the longest.
        dilations: in time, of the layers in the middle.
        slope: of LeakyReLU.
        peak: see gentok.nn.waveform_discriminator.levelled.

    Raises:
        ValueError: sizes below 1, or windows below 4.
    """

    def __init__(
        self,
        channels: PositiveInt = 1,
        filters: PositiveInt = 32,
        windows: PositiveInts = (2048, 1024, 512, 256, 128),
        dilations: PositiveInts = (1, 2, 4),
        slope: NonNegativeFloat = 0.2,
        peak: NonNegativeFloat | None = None,
    ):
        if channels < 1 or filters < 1 or not windows or not dilations or min(windows) < 4 or min(dilations) < 1:
            raise ValueError(
                "STFT discriminators need channels, filters and dilations of at least 1 and windows of at least 4 samples; "
                f"got {channels}, {filters}, {list(dilations)} and {list(windows)}"
            )
        parts = (_STFTDiscriminator(channels, filters, window, dilations, slope) for window in windows)
        super().__init__(channels, peak, max(windows), parts)


class _STFTDiscriminator(nn.Module):
    def __init__(self, channels: int, filters: int, window: int, dilations: Sequence[int], slope: float):
        super().__init__()
        self.window, self.slope = window, slope
        self.layers = nn.ModuleList([nn.Conv2d(2 * channels, filters, (3, 9), padding=(1, 4))])
        for dilation in dilations:
            self.layers.append(
                convolution(filters, filters, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)),
            )
        self.layers.append(convolution(filters, filters, (3, 3), padding=1))
        self.head = convolution(filters, 1, (3, 3), padding=1)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = complex_spectrogram(wave, self.window, self.window // 4, normalized=True).to(self.layers[0].weight.dtype)
        features = features_of(x, self.layers, self.slope)
        return self.head(features[-1]), features
