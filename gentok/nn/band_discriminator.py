"""The multi-band, multi-resolution complex STFT discriminator of DAC (Kumar et al., arXiv 2306.06546, section 3.4).

For each window, the complex spectrogram [B, 2 C, frames, frequencies], real and imaginary parts as channels, is cut into bands of
frequencies, each with a stack of its own:

    convolutions 3 x 9, the second to fourth with stride 2 in frequency;  convolution 3 x 3                    each LeakyReLU(0.1)
    the bands side by side again;  convolution 3 x 3 to a logit per frame and frequency

with weight normalisation. As in DAC's code, frames are a quarter of a window apart, ceil(T / hop) of them, of waves that are reflected by
half of what a window is longer than its hop (and at the end up to a whole hop). Deviation: channels of the media are channels of the
network's first layer, where the code takes one channel. The STFT is float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentok.nn.waveform_discriminator import WaveformDiscriminators, complex_spectrogram, convolution, features_of
from gentok.settings import NonNegativeFloat, PositiveInt, PositiveInts

__all__ = ["BANDS", "BandDiscriminators"]

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Of the frequencies from 0 to half the sample rate."""


class BandDiscriminators(WaveformDiscriminators, id="discriminator/band"):
    """media float [B, C, T] -> (logits, features), one of each per window: float [B, 1, frames, .], and for every band, one
    after the other, five [B, filters, frames, .].

    Args:
        channels: C.
        windows: in samples, divisible by 4; T must be at least 5/8 of the longest.
        filters: channels of every layer.
        bands: (low, high) of each, as parts of the frequencies; see BANDS.
        peak: see gentok.nn.waveform_discriminator.levelled.

    Raises:
        ValueError: sizes below 1, windows that 4 does not divide, or bands without a frequency.
    """

    def __init__(
        self,
        channels: PositiveInt = 1,
        windows: PositiveInts = (2048, 1024, 512),
        filters: PositiveInt = 32,
        bands: Sequence[Sequence[float]] = BANDS,
        peak: NonNegativeFloat | None = 0.8,
    ):
        if min(channels, filters) < 1 or not windows or any(w % 4 or w < 4 for w in windows):
            raise ValueError(
                "band discriminators need channels and filters of at least 1 and windows that 4 divides; "
                f"got {channels}, {filters} and {list(windows)}"
            )
        parts = (_BandDiscriminator(channels, window, filters, bands) for window in windows)
        super().__init__(channels, peak, max(windows) * 5 // 8, parts)


class _BandDiscriminator(nn.Module):
    def __init__(self, channels: int, window: int, filters: int, bands: Sequence[Sequence[float]]):
        super().__init__()
        self.window, bins = window, window // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        if not bands or any(not 0 <= low < high <= bins for low, high in self.bands):
            raise ValueError(
                f"bands are pairs 0 <= low < high <= 1 that hold a frequency of each window; got {list(bands)} at {window} samples"
            )
        self.stacks = nn.ModuleList()
        for _ in bands:
            stack = nn.ModuleList([convolution(2 * channels, filters, (3, 9), padding=(1, 4))])
            stack.extend(convolution(filters, filters, (3, 9), stride=(1, 2), padding=(1, 4)) for _ in range(3))
            stack.append(convolution(filters, filters, (3, 3), padding=1))
            self.stacks.append(stack)
        self.head = convolution(filters, 1, (3, 3), padding=1)

    def _bands(self, wave: Tensor) -> list[Tensor]:
        hop = self.window // 4
        pad = (self.window - hop) // 2
        wave = F.pad(wave, (pad, pad + -wave.shape[-1] % hop), mode="reflect")
        x = complex_spectrogram(wave, self.window, hop).to(self.head.bias.dtype)
        return [x[..., low:high] for low, high in self.bands]

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = [features_of(x, stack, 0.1) for x, stack in zip(self._bands(wave), self.stacks, strict=True)]
        return self.head(torch.cat([band[-1] for band in features], -1)), sum(features, [])
