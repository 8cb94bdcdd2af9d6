"""A neural audio codec: an encoder of frames, any codebook, and the encoder's mirror image (SoundStream, arXiv 2107.03312; EnCodec, arXiv
2210.13438).

    z = encoder(sound), N = ceil(T / hop);  vectors, codes = codebook(z);  reconstruction = decoder(vectors), N * hop samples, cut to T

Sounds of a batch that differ in length are padded with zeros at the end, and `lengths` says where each ends. Encoding and decoding then
give each row what it gives alone: rows of one length go through the networks together, other lengths apart, since convolutions pad the end
of a sound by rules of their own. In training the frames behind a row's end repeat the row's own, so that codebooks learn from nothing else,
and the reconstruction is zero there, as the media is.

The adversarial terms of the papers belong to the training loop. Nothing but codes passes from encoder to decoder: models that normalise
each sound and send its scale beside the codes (EnCodec at 48 kHz) are not of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.interfaces import Codebook, Layer, Loss
from gentok.rng import RowRNG
from gentok.tokenizers.sound_checks import check_sound, frames_of, groups_of, within
from gentok.tokenizers.streaming import CodecStream, StreamingCodec
from gentok.types import ABSENT, Batch, Frames, Quantized, Raster, TokenizerOutput, Tokens, TokenSpec

__all__ = ["Codec", "CodecStream"]


class Codec(StreamingCodec, id="tokenizer/codec"):
    """Sound float [B, C, T] in [-1, 1] <-> Tokens [B, K, ceil(T / hop)] on Frames, with lengths in frames where the sound has lengths.

    encoder: float [B, C, T] -> [B, D, ceil(T / hop)] with attributes channels, width (D), hop and causal. codebook: any that gives every
    frame its codes; its in_width is the encoder's width, its width the decoder's. decoder: [B, D, N] -> [B, C, N * hop], with attributes
    channels, width, hop, and `takes_rng` where it draws (SNAC; without noise nothing is drawn). Both parts may have `start` and `step`
    (gentok/nn/conv1d.py): then the codec works chunk by chunk. Where codes span several frames (the codebook's `multiple`), sounds are
    continued with zeros to so many frames.
    sample_rate: of the sound in Hz. losses: (reconstruction, media) -> {name: weighted scalar}, or None where it is never trained.
    media_shape: of the data, (C,) or (C, T), T samples of the longest item, which then bounds the grid.

    Raises ValueError with a line where parts do not fit each other.
    """

    modality = "audio"
    one_code_per_cell = True

    def __init__(
        self,
        encoder: Layer,
        codebook: Codebook,
        decoder: Layer,
        sample_rate: int,
        losses: Loss | None = None,
        media_shape: Sequence[int] | None = None,
    ):
        super().__init__()
        if encoder.width != codebook.in_width or decoder.width != codebook.width:
            raise ValueError(
                f"the encoder makes {encoder.width} channels and the decoder takes {decoder.width}; the codebook takes {codebook.in_width} "
                f"and makes {codebook.width}: set codebook.width, or the widths of encoder and decoder"
            )
        if encoder.hop != decoder.hop or encoder.channels != decoder.channels:
            raise ValueError(
                f"the encoder takes {encoder.channels} channel(s) at {encoder.hop} samples per frame, the decoder makes "
                f"{decoder.channels} at {decoder.hop}: give both the same channels and ratios"
            )
        if codebook.strides is None and not isinstance(codebook.grid(1, 1), Raster):
            raise ValueError(f"codec gives every frame its codes; {type(codebook).__name__} makes {codebook.grid(1, 1)}")
        if sample_rate < 1:
            raise ValueError(f"codec needs the sample rate in Hz; got {sample_rate}")
        shape = tuple(int(n) for n in media_shape) if media_shape else (encoder.channels,)
        if len(shape) > 2 or shape[0] != encoder.channels:
            raise ValueError(
                f"this codec takes sound of {encoder.channels} channel(s), media_shape = ({encoder.channels},) or ({encoder.channels}, "
                f"samples); the data has {shape}: convert it, or set the channels of encoder and decoder"
            )
        self.encoder, self.codebook, self.decoder = encoder, codebook, decoder
        self.hop, self.losses = int(encoder.hop), losses
        self.multiple = codebook.multiple
        self.spec = TokenSpec(
            vocab_sizes=tuple(codebook.vocab_sizes),
            grid=Frames(sample_rate / self.hop, self._frames(shape[1]) if len(shape) == 2 else None),
            strides=codebook.strides,
            nested_levels=codebook.nested_levels,
            modality="audio",
            media_shape=(encoder.channels,),
            sample_rate=int(sample_rate),
        )

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.last_layer

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames of so many samples: a whole number of what the codebook codes together."""
        return frames_of(samples, self.hop * self.multiple) * self.multiple

    def _spec(self, frames: int) -> TokenSpec:
        """The spec of so many frames: its own where the grid has no bound, or this one."""
        grid = self.spec.grid
        return self.spec if grid.n in (None, frames) else replace(self.spec, grid=replace(grid, n=frames))

    # ------------------------------------------------------------------------------------------------------------ networks

    def _features(self, media: Tensor, lengths: Tensor | None) -> Tensor:
        """float [B, C, T] -> [B, D, ceil(T / hop)], zero behind a row's frames."""
        media, frames, block = media.to(self._dtype), self._frames(media.shape[2]), self.hop * self.multiple
        z = None
        for rows, length in groups_of(lengths, media):
            part = media[rows, :, :length]
            if self.multiple > 1:
                part = F.pad(part, (0, -length % block))
            part = self.encoder(part) if length else part.new_zeros(len(part), self.encoder.width, 0)
            if part.shape[2] == frames and len(part) == len(media):
                return part
            z = part.new_zeros(len(media), self.encoder.width, frames) if z is None else z
            z[rows, :, : part.shape[2]] = part
        return z

    def _sound(self, vectors: Tensor, lengths: Tensor | None, rng: RowRNG | None = None) -> Tensor:
        """float [B, D, N], lengths in frames -> [B, C, N * hop] float32 (float64 in a float64 model), zero behind a row's frames."""
        rng = None if rng is None or not self.decoder.takes_rng else rng.fork("decoder")
        vectors, samples = vectors.to(self._dtype), vectors.shape[2] * self.hop
        media = None
        for rows, frames in groups_of(lengths, vectors):
            part = vectors[rows, :, :frames]
            if not frames:
                part = part.new_zeros(len(part), self.decoder.channels, 0)
            elif rng is None:
                part = self.decoder(part)
            else:
                part = self.decoder(part, rng=rng if isinstance(rows, slice) else rng.rows(rows))
            part = part if part.dtype == torch.float64 else part.float()
            if part.shape[2] == samples and len(part) == len(vectors):
                return part
            media = part.new_zeros(len(vectors), self.decoder.channels, samples) if media is None else media
            media[rows, :, : part.shape[2]] = part
        return media

    def _quantize(self, z: Tensor, rng: RowRNG | None) -> Any:
        """The codebook's answer, as in eval: changes no buffer."""
        training = self.codebook.training
        self.codebook.eval()
        try:
            return self.codebook(z, rng=rng)
        finally:
            self.codebook.train(training)

    def _no_codes(self, z: Tensor) -> Tensor:
        return torch.zeros(len(z), self.spec.levels, 0, dtype=torch.int64, device=z.device)

    def _tokens(self, codes: Tensor, frames: Tensor | None) -> Tokens:
        if frames is not None:
            codes = codes.masked_fill(~within(frames, codes.shape[2])[:, None], ABSENT)
        return Tokens(codes, self._spec(codes.shape[2]), frames)

    # ------------------------------------------------------------------------------------------------------------- contract

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None, sample_rate: int | None = None) -> Tokens:
        """media float [B, C, T], lengths int64 [B] in samples (None: all T) -> Tokens [B, K, ceil(T / hop)], ABSENT behind a row's frames.

        Changes no buffer, also in training mode. No sample gives no frame. Raises ValueError with a line on other shapes, on values that
        are not finite, and where sample_rate, if it is known, is another than the codec's.
        """
        lengths = check_sound(media, lengths, self.encoder.channels, self.spec.sample_rate, sample_rate)
        z = self._features(media, lengths)
        codes = self._quantize(z, rng).codes if z.shape[2] else self._no_codes(z)
        return self._tokens(codes, None if lengths is None else self._frames(lengths))

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None, keep: int | None = None, samples: int | Tensor | None = None) -> Tensor:
        """Tokens [B, K, N] -> media float32 [B, C, T] in [-1, 1], T = N * hop or, where `samples` (an int or int64 [B]) says so, fewer.

        Absent levels add nothing. keep: of nested levels, the first to decode. Behind a row's end there are zeros.
        """
        self._check_tokens(tokens)
        if keep is not None:
            if not self.spec.nested_levels or not 1 <= keep <= self.spec.levels:
                kind = f"1 to {self.spec.levels}" if self.spec.nested_levels else "all: they are not nested"
                raise ValueError(f"of {self.spec.levels} level(s) this codec decodes {kind}; got keep={keep}")
            tokens = tokens.truncate(levels=keep)
        frames = tokens.codes.shape[2]
        if not frames:
            dtype = torch.float64 if self._dtype == torch.float64 else torch.float32
            return torch.zeros(tokens.batch, self.decoder.channels, 0, dtype=dtype, device=tokens.codes.device)
        media = self._sound(self.codebook.lookup(tokens.codes), tokens.lengths, rng).clamp(-1, 1)
        if samples is None:
            return media
        ends = torch.as_tensor(samples, device=media.device)
        longest = int(ends.max())
        if not 0 <= int(ends.min()) <= longest <= media.shape[2]:
            raise ValueError(f"{frames} frames of {self.hop} samples give 0 to {media.shape[2]} samples; got samples={samples}")
        return (media * within(ends, media.shape[2])[:, None] if ends.dim() else media)[..., :longest]

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction [B, C, T] is unclamped, with gradient; losses are those of `losses` and of the codebook."""
        media = batch.media
        lengths = check_sound(media, batch.lengths, self.encoder.channels, self.spec.sample_rate, finite=False)
        if not media.shape[2] or (lengths is not None and not int(lengths.max())):
            raise ValueError("a codec cannot be trained on sounds without a sample")
        frames = None if lengths is None else self._frames(lengths)
        z = self._features(media, lengths)
        if frames is not None:
            z = repeated(z, frames)
        quantized = self.codebook(z, rng=rng)
        reconstruction = self._sound(quantized.vectors, frames, rng)[..., : media.shape[2]]
        if lengths is not None:
            reconstruction = reconstruction * within(lengths, media.shape[2])[:, None]
        losses = {**quantized.losses, **self._taught(quantized, media, lengths, frames)}
        if self.losses is not None:
            losses.update(self.losses(reconstruction, media))
        return TokenizerOutput(self._tokens(quantized.codes, frames), losses, reconstruction)

    def _taught(self, quantized: Quantized, media: Tensor, lengths: Tensor | None, frames: Tensor | None) -> dict[str, Tensor]:
        """Further losses of what was quantized, {name: weighted scalar}."""
        return {}

    def _check_tokens(self, tokens: Tokens) -> None:
        if tokens.spec.vocab_sizes != self.spec.vocab_sizes or not isinstance(tokens.spec.grid, Frames):
            raise ValueError(f"these tokens are of another tokenizer: {tokens.spec.describe()}; this one makes {self.spec.describe()}")
        if not tokens.codes.is_meta and bool((tokens.codes < ABSENT).any()):
            raise ValueError("these tokens have holes (UNKNOWN cells), which a generator fills first")


def repeated(z: Tensor, frames: Tensor) -> Tensor:
    """z float [B, D, N] with a row's first frames[b] >= 0 frames repeated behind its end; rows of none repeat the longest row."""
    rows = torch.where(frames > 0, torch.arange(len(z), device=z.device), frames.argmax())
    place = torch.arange(z.shape[2], device=z.device) % frames[rows][:, None]
    return z[rows].gather(2, place[:, None].expand(-1, z.shape[1], -1))
