"""Kaldi's log-mel filter bank, which speech encoders such as w2v-BERT (arXiv 2108.06209) read, in plain torch.

    frame n = samples n shift to n shift + length - 1, without its mean, x[i] - 0.97 x[i - 1], times a Hann window to the power 0.85
    mel     = log(triangles over the mel scale @ |FFT|^2)

Sound is scaled to 16-bit integers. Each band then has mean 0 and variance 1 over the frames of a sound, as these encoders expect it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.constants import Constants
from gentok.precision import no_autocast

__all__ = ["KaldiMel"]


def _filters(n_fft: int, mels: int, sample_rate: int, f_min: float) -> Tensor:
    """float32 [mels, n_fft / 2 + 1]: triangles that are straight over mels, not over Hz, up to half the sample rate."""
    place = torch.log1p(torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64) / 700)
    ends = (math.log1p(f / 700) for f in (f_min, sample_rate / 2))
    edges = torch.linspace(*ends, mels + 2, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((place - low) / (centre - low), (high - place) / (high - centre)).clamp(min=0).float()


class KaldiMel(nn.Module):
    """Sound float [B, T] -> float32 [B, 1 + (T - length) // shift, mels], normalised over the frames.

    Args:
        sample_rate: Hz.
        mels: bands.
        length, shift: of a frame, in samples.
        f_min: Hz where the first band begins.
    """

    def __init__(self, sample_rate: int = 16000, mels: int = 80, length: int = 400, shift: int = 160, f_min: float = 20.0):
        super().__init__()
        self.length, self.shift, self.n_fft = length, shift, 1 << (length - 1).bit_length()
        with torch.device("cpu"):  # also where models are being built on the meta device
            window = torch.hann_window(length, periodic=False).pow(0.85)
            self._tables = Constants(window=window, filters=_filters(self.n_fft, mels, sample_rate, f_min).T.contiguous())

    def forward(self, wave: Tensor) -> Tensor:
        with no_autocast(wave.device):
            tables = self._tables.on(wave.device)
            frames = (wave.float() * 2**15).unfold(1, self.length, self.shift)
            frames = frames - frames.mean(2, keepdim=True)
            frames = frames - 0.97 * F.pad(frames, (1, 0), mode="replicate")[..., :-1]
            power = torch.fft.rfft(frames * tables.window, self.n_fft).abs().square()
            mel = (power @ tables.filters).clamp(min=torch.finfo(torch.float32).eps).log()
            return (mel - mel.mean(1, keepdim=True)) / (mel.var(1, keepdim=True) + 1e-7).sqrt()
