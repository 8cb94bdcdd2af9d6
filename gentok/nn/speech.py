"""Networks of a supervised speech tokenizer: sound -> a few vectors per second -> text, and back to sound (GLM-4-Voice, arXiv 2412.02612).

    SpeechEncoder   log-mel at 100 Hz, causal convolutions to 50 Hz, a transformer, mean of `pool` frames: 12.5 vectors per second
    Recogniser      vectors, repeated to the frames before pooling, a transformer, logits of symbols and blank for CTC
    SpeechDecoder   vectors, repeated to the mel's frames, a transformer, log-mel; and a vocoder, any network from mel to sound

Attention is block-causal: a frame sees all earlier frames and those of its own block, so that a code waits for the end of its block at
most. Blocks are counted in vectors, and every network has the same. Convolutions look back only; behind a sound's end there is silence.

Deviations: the mel's logarithm is clamped at a fixed level (Whisper's at 8 below the loudest frame, which looks ahead); no positions are
learnt, attention is rotary; CTC stands for the rest of Whisper, whose decoder predicts text by attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import Layer
from gentok.nn.constants import Constants
from gentok.nn.conv1d import Conv
from gentok.nn.rope import rotation
from gentok.nn.spectral import mel_filters, stft
from gentok.nn.transformer import Transformer, initialise
from gentok.precision import no_autocast
from gentok.settings import CheckedDataclass, Count, PositiveInt

__all__ = ["LogMel", "Recogniser", "SpeechDecoder", "SpeechEncoder", "block_causal"]


def block_causal(positions: int, block: int, device: torch.device | str | None = None) -> Tensor:
    """Which positions see which: their own block and all earlier ones.

    Args:
        positions: T.
        block: positions of a block.
        device: of the result.

    Returns:
        bool [T, T], True where row i sees column j.
    """
    number = torch.arange(positions, device=device) // block
    return number[:, None] >= number


class LogMel(nn.Module):
    """Mono sound float [B, 1, T] -> float [B, mels, ceil(T / hop)]: 1 + log10 of the magnitudes, clamped at 1e-5.

    Frame n stands on the samples n hop to (n + 1) hop; its window reaches n_fft - hop beyond, half on each side. Silence all around.

    Args:
        sample_rate: Hz.
        mels: bands.
        hop: samples per frame.
        n_fft: samples of a window.

    Raises:
        ValueError: a window shorter than the hop, or an odd difference.
    """

    def __init__(self, sample_rate: int, mels: int = 80, hop: int = 160, n_fft: int = 640):
        super().__init__()
        if n_fft < hop or (n_fft - hop) % 2:
            raise ValueError(f"a mel frame needs n_fft >= hop and an even difference; got n_fft={n_fft}, hop={hop}")
        with torch.device("cpu"):  # also where models are being built on the meta device
            self._tables = Constants(filters=mel_filters(n_fft // 2 + 1, mels, sample_rate), window=torch.hann_window(n_fft))
        self.hop, self.n_fft, self.side = hop, n_fft, (n_fft - hop) // 2

    def forward(self, media: Tensor) -> Tensor:
        wave = F.pad(media[:, 0], (self.side, -media.shape[2] % self.hop + self.side))
        with no_autocast(wave.device):
            wave = wave if wave.dtype == torch.float64 else wave.float()
            tables = self._tables.on(wave.device, wave.dtype)
            magnitude = stft(wave, self.n_fft, self.hop, tables.window, pad=0).abs()
            return 1 + (tables.filters @ magnitude).clamp(min=1e-5).log10()


@dataclass(frozen=True)
class BodySettings(CheckedDataclass):
    """Of the transformer between vectors and frames.

    Attributes:
        inner: its width.
        depth: its blocks.
        heads: of its attention.
        block: vectors that see each other in both directions; None: all.
    """

    inner: PositiveInt = 192
    depth: Count = 2
    heads: PositiveInt = 4
    block: PositiveInt | None = 12


BodyOptions = Annotated[Any, BodySettings]
"""Of a constructor's `**options`: they are the fields of BodySettings (gentok/build.py reads this)."""


class _Body(nn.Module):
    """A block-causal transformer over time, float [B, D, T] -> [B, D, T]. each: positions of a vector."""

    def __init__(self, settings: BodySettings, each: int):
        super().__init__()
        self.layers = Transformer(settings.inner, settings.depth, settings.heads, causal=False)
        self.block = each * (settings.block or 1 << 30)

    def forward(self, x: Tensor, ends: Tensor | None) -> Tensor:
        """ends int64 [B]: positions of each row, None: all."""
        positions = x.shape[2]
        mask = block_causal(positions, self.block, x.device)
        if ends is not None:  # a row without a position sees itself: no row of a softmax may be empty
            inside = torch.arange(positions, device=x.device) < ends[:, None]
            mask = (mask & inside[:, None] | torch.eye(positions, dtype=torch.bool, device=x.device))[:, None]
        rope = rotation(torch.arange(positions, device=x.device)[:, None], head_width=self.layers.head_width)
        return self.layers(x.transpose(1, 2), rope, mask=mask).transpose(1, 2)


class SpeechEncoder(nn.Module, Layer, id="layer/speech_encoder"):
    """Sound float [B, 1, T] -> [B, width, ceil(T / hop)], hop = mel_hop * 2 * pool.

    Args:
        sample_rate: Hz.
        width: channels of a vector.
        depth: blocks of the transformer.
        pool: frames per vector.
        mels: bands of the spectrogram.
        mel_hop: samples per frame of the spectrogram.
        n_fft: samples of its windows.
        transformer: as in BodySettings.

    Raises:
        ValueError: pool or block below 1.
    """

    channels, causal = 1, False

    def __init__(
        self,
        sample_rate: PositiveInt = 16000,
        width: PositiveInt = 64,
        depth: Count = 4,
        pool: PositiveInt = 4,
        mels: PositiveInt = 80,
        mel_hop: PositiveInt = 160,
        n_fft: PositiveInt = 640,
        **transformer: BodyOptions,
    ):
        super().__init__()
        settings = BodySettings(depth=depth, **transformer)
        self.mel = LogMel(sample_rate, mels, mel_hop, n_fft)
        self.width, self.pool, self.hop, self.block = width, pool, mel_hop * 2 * pool, settings.block
        self.first = Conv(mels, settings.inner, 3, causal=True, padding="zero")
        self.second = Conv(settings.inner, settings.inner, 3, stride=2, causal=True, padding="zero")
        self.body = _Body(settings, pool)
        self.out = nn.Linear(settings.inner, width)
        initialise(self.out)

    def forward(self, media: Tensor, ends: Tensor | None = None) -> Tensor:
        """ends int64 [B]: vectors of each row, where rows are padded with zeros; None: all."""
        media = F.pad(media, (0, -media.shape[2] % self.hop))
        x = F.gelu(self.first(self.mel(media).to(self.out.weight.dtype)))
        x = F.gelu(self.second(x))
        x = self.body(x, None if ends is None else ends * self.pool)
        return self.out(F.avg_pool1d(x, self.pool).transpose(1, 2)).transpose(1, 2)


class _VectorsToFrames(nn.Module):
    """Several frames from every vector: a matrix for each, a transformer over all, a last layer."""

    def _build(self, width: int, out: int, upsample: int, settings: BodySettings) -> None:
        self.upsample = upsample
        self.stem = nn.Linear(width, settings.inner * upsample)
        self.body = _Body(settings, upsample)
        self.head = nn.Linear(settings.inner, out)
        initialise(self.stem)
        initialise(self.head)

    def _frames(self, vectors: Tensor, ends: Tensor | None) -> Tensor:
        """float [B, width, N] -> [B, N * upsample, out]. ends int64 [B]: vectors of each row; None: all."""
        x = self.stem(vectors.transpose(1, 2).to(self.stem.weight.dtype))
        x = x.unflatten(2, (self.upsample, -1)).flatten(1, 2).transpose(1, 2)
        return self.head(self.body(x, None if ends is None else ends * self.upsample).transpose(1, 2))


class Recogniser(_VectorsToFrames):
    """Vectors float [B, width, N] -> logits float [B, N * upsample, symbols + 1], the last of them CTC's blank.

    Args:
        width: channels of a vector.
        symbols: of the text.
        upsample: frames per vector.
        transformer: as in BodySettings.
    """

    def __init__(self, width: int, symbols: int, upsample: int = 4, **transformer: BodyOptions):
        super().__init__()
        self._build(width, symbols + 1, upsample, BodySettings(**transformer))

    def forward(self, vectors: Tensor, ends: Tensor | None = None) -> Tensor:
        """ends int64 [B]: vectors of each row; None: all."""
        return self._frames(vectors, ends)


class SpeechDecoder(_VectorsToFrames, Layer, id="layer/speech_decoder"):
    """Vectors float [B, width, N] -> log-mel float [B, mels, N * upsample] (`mel`) -> sound float [B, 1, N * hop] (`forward`).

    Args:
        vocoder: float [B, mels, frames] -> [B, 1, frames * vocoder.hop]; hop = vocoder.hop * upsample.
        width: channels of a vector.
        upsample: mel frames per vector.
        transformer: as in BodySettings.
    """

    channels = 1

    def __init__(self, vocoder: Layer, width: PositiveInt = 64, upsample: PositiveInt = 8, **transformer: BodyOptions):
        super().__init__()
        self.vocoder: Any = vocoder
        self.width, self.hop = width, vocoder.hop * upsample
        self._build(width, vocoder.width, upsample, BodySettings(**transformer))

    @property
    def last_layer(self) -> Tensor:
        return self.vocoder.last_layer

    def mel(self, vectors: Tensor, ends: Tensor | None = None) -> Tensor:
        """Vectors float [B, width, N] -> log-mel float [B, mels, N * upsample]. ends int64 [B]: vectors of each row; None: all."""
        return self._frames(vectors, ends).transpose(1, 2)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.vocoder(self.mel(vectors))
