"""A decoder that stays at the frame rate: Vocos (Siuzdak, arXiv 2306.00814), as WavTokenizer (Ji et al., arXiv 2408.16532) uses it.

    conv7;  (attention over all frames);  layer norm;  blocks;  layer norm;  linear to magnitudes and phases;  inverse STFT
    block: x + gamma * linear(gelu(linear(layer_norm(depthwise conv7(x)))))        (ConvNeXt, arXiv 2201.03545); gamma = 1 / blocks at first
    S = min(exp(m), 100) * (cos p + i sin p),  a Hann window and n_fft = 4 hop by default

The inverse transform is cut so that N frames give N * hop samples ("same" padding): frame n is centred on the middle of its own hop
samples, and what the windows of overlapping frames sum to is divided out, so that the spectrum of a sound gives back the sound.

Deviations: WavTokenizer's attention stands between convolutional residual blocks; here it is gentok's (gentok/nn/recurrence.py), alone. Its
norms are conditioned on a bandwidth that a model of one codebook has not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import Layer
from gentok.nn.recurrence import WindowedAttention
from gentok.settings import Count, NonNegativeInt, PositiveInt

__all__ = ["ISTFTDecoder", "inverse_stft"]


def _first_sample(n_fft: int, hop: int) -> int:
    """How many samples of the overlap-add are cut off on the left."""
    return (n_fft - hop) // 2


def _windowed_frames(spectrum: Tensor, n_fft: int, window: Tensor) -> Tensor:
    return torch.fft.irfft(spectrum, n_fft, dim=1) * window[:, None]


def _window_power(window: Tensor) -> Tensor:
    """A sample passes the window in the STFT and again in its inverse."""
    return window.square()


def inverse_stft(spectrum: Tensor, n_fft: int, hop: int) -> Tensor:
    """Overlap-add of Hann-windowed frames over the sum of the squared windows.

    Args:
        spectrum: complex [B, n_fft // 2 + 1, N].
        n_fft: samples of a window.
        hop: samples from one window to the next.

    Returns:
        float [B, N * hop], without the first (n_fft - hop) / 2 samples.
    """
    frames = spectrum.shape[2]
    window = torch.hann_window(n_fft, dtype=spectrum.real.dtype, device=spectrum.device)
    pieces = _windowed_frames(spectrum, n_fft, window)
    whole = (frames - 1) * hop + n_fft
    weight = _window_power(window)[:, None].expand(-1, frames)

    def added(x: Tensor) -> Tensor:
        return F.fold(x, (1, whole), (1, n_fft), stride=(1, hop)).flatten(1)

    left = _first_sample(n_fft, hop)
    kept = slice(left, left + frames * hop)
    return added(pieces)[:, kept] / added(weight[None])[:, kept].clamp(min=1e-8)


class ConvNeXtBlock(nn.Module):
    """float [B, filters, N] -> the same shape.

    Args:
        filters: channels.
        hidden: channels inside.
        gamma: scale of the branch at the start.
    """

    def __init__(self, filters: int, hidden: int, gamma: float):
        super().__init__()
        self.mix = nn.Conv1d(filters, filters, 7, padding=3, groups=filters)
        self.norm = nn.LayerNorm(filters, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(filters, hidden), nn.GELU(), nn.Linear(hidden, filters))
        self.gamma = nn.Parameter(torch.full((filters,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mlp(self.norm(self.mix(x).transpose(1, 2)))
        return x + (self.gamma * h).transpose(1, 2)


class ISTFTDecoder(nn.Module, Layer, id="layer/istft_decoder"):
    """float [B, width, N], N >= 1 -> sound float [B, channels, N * hop].

    Args:
        hop: samples per frame, the encoder's.
        width: channels of a frame.
        channels: of the sound.
        filters: channels of the blocks.
        hidden: channels inside the blocks; None: 3 * filters.
        blocks: how many.
        n_fft: samples of a window; None: 4 * hop.
        attention: layers of attention before the blocks; it sees all frames.
        heads: of attention.

    Raises:
        ValueError: the windows do not overlap.
    """

    causal = False

    def __init__(
        self,
        hop: PositiveInt,
        width: PositiveInt = 512,
        channels: PositiveInt = 1,
        filters: PositiveInt = 768,
        hidden: PositiveInt | None = None,
        blocks: Count = 12,
        n_fft: PositiveInt | None = None,
        attention: NonNegativeInt = 0,
        heads: PositiveInt = 8,
    ):
        super().__init__()
        self.channels, self.width, self.hop, self.n_fft = channels, width, int(hop), int(n_fft or 4 * hop)
        if self.n_fft < 2 * self.hop or self.n_fft % 2:
            raise ValueError(f"an inverse STFT needs an even n_fft of at least 2 * hop = {2 * self.hop}; got {self.n_fft}")
        self.stem = nn.Conv1d(width, filters, 7, padding=3)
        self.attention = WindowedAttention(filters, attention, heads, causal=False) if attention else nn.Identity()
        self.norm = nn.LayerNorm(filters, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(filters, hidden or 3 * filters, 1 / blocks) for _ in range(blocks))
        self.last_norm = nn.LayerNorm(filters, eps=1e-6)
        self.head = nn.Linear(filters, channels * (self.n_fft + 2))
        for module in (self.stem, self.head, *(m for block in self.blocks for m in block.modules())):
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def last_layer(self) -> Tensor:
        """The head's weight, where gradients of losses are compared (adaptive weights)."""
        return self.head.weight

    def forward(self, z: Tensor) -> Tensor:
        x = self.attention(self.stem(z))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        h = self.head(self.last_norm(x.transpose(1, 2))).transpose(1, 2)
        with torch.autocast(h.device.type if h.device.type != "meta" else "cpu", enabled=False):
            h = (h if h.dtype == torch.float64 else h.float()).reshape(z.shape[0] * self.channels, self.n_fft + 2, -1)
            magnitude, phase = h.chunk(2, dim=1)
            spectrum = torch.polar(magnitude.exp().clamp(max=100.0), phase)
            return inverse_stft(spectrum, self.n_fft, self.hop).view(z.shape[0], self.channels, -1)
