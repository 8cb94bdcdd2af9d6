"""What discriminators of waveforms share: a set of networks, the check of their input, its level, and weight-normalised convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gentok.interfaces import Discriminator
from gentok.nn.spectral import stft
from gentok.settings import NonNegativeFloat, PositiveInt

__all__ = ["WaveformDiscriminators", "complex_spectrogram", "convolution", "features_of", "levelled"]


class WaveformDiscriminators(nn.Module, Discriminator):
    """Several networks, each of which sees the whole waveform in its own way.

    Attributes:
        channels: C of the waveforms.
        peak: see `levelled`.
        min_samples: the shortest waveform that every network takes.
        parts: the networks, each float [B, C, T] -> (logits, list of features).
    """

    def __init__(self, channels: PositiveInt, peak: NonNegativeFloat | None, min_samples: PositiveInt, parts: Iterable[nn.Module]):
        super().__init__()
        self.channels, self.peak, self.min_samples = channels, peak, min_samples
        self.parts = nn.ModuleList(parts)

    def forward(self, media: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The judgement of every network.

        Args:
            media: float [B, C, T].

        Returns:
            (logits, features), one entry per network.

        Raises:
            ValueError: other channels, or fewer than `min_samples` samples.
        """
        if media.dim() != 3 or media.shape[1] != self.channels:
            raise ValueError(f"this discriminator takes waves [B, {self.channels}, T]; got {tuple(media.shape)}: set its channels")
        if media.shape[2] < self.min_samples:
            raise ValueError(
                f"this discriminator needs waves of at least {self.min_samples} samples; got {media.shape[2]}: take longer crops"
            )
        wave = levelled(media, self.peak)
        logits, features = zip(*(part(wave) for part in self.parts))
        return list(logits), list(features)


def levelled(media: Tensor, peak: float | None) -> Tensor:
    """Waveforms without their mean and at one level, as DAC's discriminators see them, per row and channel.

    Args:
        media: float [B, C, T].
        peak: the largest magnitude of the result; None leaves mean and level as they are. Magnitudes below 1e-6 count as 1e-6, so that
            silence stays silence (DAC adds 1e-9, by which the rounding of a constant waveform becomes loud).

    Returns:
        float32 [B, C, T]; float64 stays float64.
    """
    media = media if media.dtype == torch.float64 else media.float()
    if peak is None:
        return media
    media = media - media.mean(-1, keepdim=True)
    return peak * media / media.abs().amax(-1, keepdim=True).clamp(min=1e-6)


def complex_spectrogram(wave: Tensor, window: int, hop: int, normalized: bool = False) -> Tensor:
    """Real and imaginary parts of a short-time Fourier transform as channels.

    Args:
        wave: float [B, C, T].
        window: samples of a frame.
        hop: samples from one frame to the next.
        normalized: as of gentok.nn.spectral.stft.

    Returns:
        float [B, 2 C, frames, window / 2 + 1], real parts before imaginary ones; computed in float32, also under autocast.
    """
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = stft(wave, window, hop, normalized=normalized, pad=0)
        return torch.cat([spectrum.real, spectrum.imag], 1).transpose(-1, -2)


def features_of(x: Tensor, layers: Iterable[nn.Module], slope: float) -> list[Tensor]:
    """The outputs of layers in a row.

    Args:
        x: what the first layer takes.
        layers: in the order of their use.
        slope: of the LeakyReLU that follows each.

    Returns:
        An output per layer.
    """
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return features


class _Conv2d(nn.Conv2d):
    """A Conv2d that is right in bfloat16 on the CPU, also where its output is one value wide."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        # On a CPU with AMX, oneDNN's bfloat16 convolution (torch 2.14) reads uninitialised memory where the stride along the last axis is
        # above 1 and the output is one value wide: now and then it gives NaN in the output or in the gradients. float32 is not affected.
        span = (self.kernel_size[-1] - 1) * self.dilation[-1] + 1
        narrow = self.stride[-1] > 1 and x.shape[-1] + 2 * self.padding[-1] < span + self.stride[-1]
        if not (narrow and x.is_cpu) or x.dtype == torch.float64:
            return self._conv_forward(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def convolution(*args: Any, **options: Any) -> nn.Conv2d:
    """A Conv2d whose weight is g v / |v| per output channel (Salimans and Kingma, arXiv 1602.07868)."""
    return weight_norm(_Conv2d(*args, **options))
