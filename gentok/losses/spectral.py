"""Distances of spectrograms at many scales, as codecs are trained by. x, x': media and reconstruction; S_w:
mel spectrogram, window w.

    EncodecMel (EnCodec, arXiv 2210.13438, section 3.4):
        (1 / sum over w of (1 + a_w)) * sum over w of
            mean |S_w(x) - S_w(x')| + a_w mean (log10(f + S_w(x)) - log10(f + S_w(x')))²
        S_w: squared magnitudes of STFTs over the root of the window's energy, 64 HTK mels
    DacMel (DAC, arXiv 2306.06546, section 3.5):
        sum over w of  mean |log10 max(S_w(x), f) - log10 max(S_w(x'), f)|
        S_w: magnitudes, slaney mels, 5 w / 32 of them
    MultiScaleSTFT (DDSP, arXiv 2001.04643, equation 4, as DAC's code computes it, where it is watched and not
    trained by):
        sum over w of  mean |M_w(x) - M_w(x')| + mean |log10 max(M_w(x), f)² - log10 max(M_w(x'), f)²|
        M_w: magnitudes

Deviation: EnCodec's paper writes the 2-norm of a difference of linear mels for its second term; this is its
released code (audiocraft), which takes the mean square of logarithms. There and here frames are a quarter of
a window apart.

All are float32 inside, also under autocast. Rows may have lengths in samples: what lies beyond does not
count, and means are taken over the frames that begin a hop within.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gentok.interfaces import Loss
from gentok.nn.spectral import Mel, frame_mask, stft
from gentok.settings import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveInts

__all__ = ["EncodecMel", "DacMel", "MultiScaleSTFT", "within"]


def within(wave: Tensor, lengths: Tensor | None) -> Tensor:
    """wave float [B, C, T], zero beyond each row's length int64 [B]."""
    if lengths is None:
        return wave
    return wave * (torch.arange(wave.shape[-1], device=wave.device) < lengths.to(wave.device)[:, None])[:, None]


class _Scales:
    """weight * distance -> a float32 scalar. Subclasses implement what one scale adds.

    Constants follow the media's device; this is no module, and so no part of a tokenizer's weights.
    """

    def __init__(self, weight: PositiveFloat, windows: PositiveInts):
        if not windows or any(w % 4 for w in windows):
            raise ValueError(
                f"a spectral distance needs windows that 4 divides; got windows={list(windows)}"
            )
        self.weight, self.windows = weight, tuple(windows)

    def __call__(self, reconstruction: Tensor, media: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The weighted distance.

        Args:
            reconstruction: float [B, C, T].
            media: float [B, C, T].
            lengths: int64 [B] in samples; None: all are T long.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: the shapes differ, or the waves are shorter than half the longest window.
        """
        if media.dim() != 3 or reconstruction.shape != media.shape:
            raise ValueError(f"spectral distances take waves [B, C, T] twice; got {tuple(reconstruction.shape)} and {tuple(media.shape)}")
        if media.shape[-1] <= max(self.windows) // 2:
            raise ValueError(
                f"a window of {max(self.windows)} samples needs waves of more than {max(self.windows) // 2}; got {media.shape[-1]}: "
                "take longer crops or fewer windows"
            )
        with torch.autocast(media.device.type, enabled=False):
            made, real = (within(x if x.dtype == torch.float64 else x.float(), lengths) for x in (reconstruction, media))
            parts = [self._at(i, made, real.to(made), lengths) for i in range(len(self.windows))]
            return self.weight * self._joined(torch.stack(parts))

    def _at(self, i: int, made: Tensor, real: Tensor, lengths: Tensor | None) -> Tensor:
        """The distance at window i, a scalar."""
        raise NotImplementedError

    def _joined(self, parts: Tensor) -> Tensor:
        return parts.sum()


def _mean(x: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    """x float [B, C, F, frames] -> its mean over the frames within each row's length, every frame alike."""
    if lengths is None:
        return x.mean()
    mask = frame_mask(lengths.to(x.device), x.shape[-1], hop)[:, None, None]
    return (x * mask).sum() / (mask.sum() * x.shape[1] * x.shape[2])


class EncodecMel(_Scales, Loss, id="loss/encodec_mel"):
    """EnCodec's distance of mel spectrograms.

    Waves are reflected at both ends by half of what a window is longer than its hop, then filled up with
    zeros, for ceil(T / hop) frames.
    """

    def __init__(
        self,
        sample_rate: PositiveInt,
        weight: PositiveFloat = 1.0,
        windows: PositiveInts = (32, 64, 128, 256, 512, 1024, 2048),
        mels: PositiveInt = 64,
        f_min: NonNegativeFloat = 0.0,
        f_max: NonNegativeFloat | None = None,
        alpha: NonNegativeFloat | None = 1.0,
        normalized: bool = True,
        floor: PositiveFloat = 1e-5,
    ):
        """Makes the filters.

        Args:
            sample_rate: in Hz.
            weight: of the distance.
            windows: in samples.
            mels: filters of every window.
            f_min: Hz, of the lowest filter.
            f_max: Hz, of the highest; None: half the sample rate.
            alpha: a_w of every scale; None: the root of w - 1.
            normalized: False leaves out the division by the window's energy, and that by the sum of weights.
            floor: f.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__(weight, windows)
        self.alphas = [math.sqrt(w - 1) if alpha is None else alpha for w in self.windows]
        self.total, self.floor = (sum(self.alphas) + len(self.alphas) if normalized else 1.0), floor
        settings = {"mels": mels, "f_min": f_min, "f_max": f_max, "power": 2.0, "normalized": normalized, "pad": 0, "empty": True}
        self.mels = [Mel(sample_rate, w, **settings) for w in self.windows]

    def _spectrogram(self, i: int, wave: Tensor) -> Tensor:
        window, hop = self.windows[i], self.windows[i] // 4
        pad = (window - hop) // 2
        wave = F.pad(F.pad(wave, (pad, pad), mode="reflect"), (0, -wave.shape[-1] % hop))
        return self.mels[i].to(wave.device)(wave)

    def _at(self, i: int, made: Tensor, real: Tensor, lengths: Tensor | None) -> Tensor:
        a, b = self._spectrogram(i, made), self._spectrogram(i, real)
        linear = _mean((a - b).abs(), self.windows[i] // 4, lengths)
        if not self.alphas[i]:
            return linear
        logarithmic = ((self.floor + a).log10() - (self.floor + b).log10()).square()
        return linear + self.alphas[i] * _mean(logarithmic, self.windows[i] // 4, lengths)

    def _joined(self, parts: Tensor) -> Tensor:
        return parts.sum() / self.total


class DacMel(_Scales, Loss, id="loss/dac_mel"):
    """DAC's distance of mel spectrograms."""

    def __init__(
        self,
        sample_rate: PositiveInt,
        weight: PositiveFloat = 1.0,
        windows: PositiveInts = (32, 64, 128, 256, 512, 1024, 2048),
        mels: PositiveInts = (5, 10, 20, 40, 80, 160, 320),
        f_min: NonNegativeFloat = 0.0,
        f_max: NonNegativeFloat | None = None,
        floor: PositiveFloat = 1e-5,
    ):
        """Makes the filters. As of EncodecMel, but `mels` are the numbers of filters, one for each window."""
        super().__init__(weight, windows)
        if len(mels) != len(self.windows):
            raise ValueError(f"this mel distance needs a number of mels per window; got {list(mels)} for {list(windows)}")
        self.floor = floor
        settings = {"f_min": f_min, "f_max": f_max, "scale": "slaney", "norm": "slaney", "empty": True}
        self.mels = [Mel(sample_rate, w, mels=m, **settings) for w, m in zip(self.windows, mels, strict=True)]

    def _at(self, i: int, made: Tensor, real: Tensor, lengths: Tensor | None) -> Tensor:
        mel = self.mels[i].to(made.device)
        a, b = (mel(wave).clamp(min=self.floor).log10() for wave in (made, real))
        return _mean((a - b).abs(), mel.hop, lengths)


class MultiScaleSTFT(_Scales, Loss, id="loss/multi_scale_stft"):
    """The distance of magnitudes, linear and logarithmic."""

    def __init__(
        self,
        weight: PositiveFloat = 1.0,
        windows: PositiveInts = (2048, 512),
        linear: NonNegativeFloat = 1.0,
        log: NonNegativeFloat = 1.0,
        floor: PositiveFloat = 1e-5,
    ):
        """Needs no filters.

        Args:
            weight: of the distance.
            windows: in samples.
            linear: weight of the first term.
            log: weight of the second.
            floor: f.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__(weight, windows)
        if linear + log == 0:
            raise ValueError("this STFT distance needs a weight, linear or log, above 0")
        self.linear, self.log, self.floor = linear, log, floor

    def _at(self, i: int, made: Tensor, real: Tensor, lengths: Tensor | None) -> Tensor:
        hop = self.windows[i] // 4
        a, b = (stft(wave, self.windows[i], hop).abs() for wave in (made, real))
        total = self.linear * _mean((a - b).abs(), hop, lengths) if self.linear else a.new_zeros(())
        if self.log:
            a, b = (2 * m.clamp(min=self.floor).log10() for m in (a, b))
            total = total + self.log * _mean((a - b).abs(), hop, lengths)
        return total
