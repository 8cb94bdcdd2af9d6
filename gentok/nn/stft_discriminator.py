"""The multi-scale STFT discriminator of EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438, section 3.4).

For each window, a network on the complex spectrogram, real and imaginary parts as channels [B, 2 C, frames, frequencies]:

    convolution 3 x 9;  convolutions 3 x 9 with dilations 1, 2, 4 in time and stride 2 in frequency;  convolution 3 x 3    each LeakyReLU
    convolution 3 x 3 to a logit per frame and frequency

as in the `encodec` package: frames a quarter of a window apart without padding, spectra over the root of the window's energy, weight
normalisation but in the first convolution, LeakyReLU(0.2) (audiocraft: 0.3). The STFT is float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.interfaces import Discriminator
from gentok.nn.spectral import stft
from gentok.nn.waveform_checks import check_wave, convolution, levelled

__all__ = ["STFTDiscriminators"]


class STFTDiscriminators(nn.Module, Discriminator, id="discriminator/ms_stft"):
    """media float [B, C, T] -> (logits, features), one of each per window: float [B, 1, frames, frequencies'], and, of every layer before
    them, [B, filters, frames, .].

    channels: C. filters: channels of every layer. windows: in samples; T must be at least the longest. slope: of LeakyReLU. peak: see
    gentok.nn.waveform_checks.levelled. Raises ValueError on other channels or shorter waves.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: int = 32,
        windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        dilations: Sequence[int] = (1, 2, 4),
        slope: float = 0.2,
        peak: float | None = None,
    ):
        super().__init__()
        if channels < 1 or filters < 1 or not windows or not dilations or min(windows) < 4 or min(dilations) < 1:
            raise ValueError(
                "STFT discriminators need channels, filters and dilations of at least 1 and windows of at least 4 samples; "
                f"got {channels}, {filters}, {list(dilations)} and {list(windows)}"
            )
        self.channels, self.windows, self.peak = channels, tuple(windows), peak
        self.parts = nn.ModuleList(_STFTDiscriminator(channels, filters, window, dilations, slope) for window in windows)

    def forward(self, media: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        check_wave(media, self.channels, max(self.windows))
        wave = levelled(media, self.peak)
        logits, features = zip(*(part(wave) for part in self.parts))
        return list(logits), list(features)


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
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = stft(wave, self.window, normalized=True, pad=0)
            x = torch.cat([spectrum.real, spectrum.imag], 1).transpose(-1, -2)
        x, features = x.to(self.layers[0].weight.dtype), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), self.slope)
            features.append(x)
        return self.head(x), features
