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

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.errors import counted
from gentok.interfaces import Codebook, Layer, Loss, StreamingTokenizer
from gentok.precision import at_least_float32
from gentok.rng import RowRNG
from gentok.settings import PositiveInt
from gentok.tokenizers.sound_checks import check_known, check_sound, frames_of, groups_of, within
from gentok.tokenizers.streaming import CodecStream, why_not
from gentok.types import ABSENT, Batch, Frames, Quantized, Raster, TokenizerOutput, Tokens, TokenSpec

__all__ = ["Codec", "cut", "repeated"]


class Codec(StreamingTokenizer, id="tokenizer/codec"):
    """Sound float [B, C, T] in [-1, 1] <-> Tokens [B, K, ceil(T / hop)] on Frames, with lengths in frames where the sound has lengths.

    Attributes:
        encoder: float [B, C, T] -> [B, D, ceil(T / hop)].
        decoder: float [B, D, N] -> [B, C, N * hop].
        hop: samples per frame.
        multiple: frames that are coded together.
    """

    modality = "audio"
    one_code_per_cell = True

    def __init__(
        self,
        encoder: Layer,
        codebook: Codebook,
        decoder: Layer,
        sample_rate: PositiveInt,
        losses: Loss | None = None,
        media_shape: Sequence[PositiveInt] | None = None,
    ):
        """
        Args:
            encoder: has the attributes channels, width (D), hop and causal.
            codebook: any that gives every frame its codes; its in_width is the encoder's width, its width the decoder's. Where codes span
                several frames (`multiple`), sounds are continued with zeros to so many frames.
            decoder: has the attributes channels, width, hop, causal, and takes_rng where it draws (SNAC; without rng nothing is drawn).
            sample_rate: of the sound in Hz.
            losses: (reconstruction, media) -> {name: weighted scalar}; None where it is never trained.
            media_shape: of the data, (C,), or (C, T) of T samples of the longest item, which then bounds the grid.

        Raises:
            ValueError: the parts do not fit each other or the data.
        """
        super().__init__()
        if encoder.width != codebook.in_width or decoder.width != codebook.width:
            raise ValueError(
                f"the encoder makes {encoder.width} channels and the decoder takes {decoder.width}; the codebook takes {codebook.in_width} "
                f"and makes {codebook.width}: set codebook.width, or the widths of encoder and decoder"
            )
        if encoder.hop != decoder.hop or encoder.channels != decoder.channels:
            raise ValueError(
                f"the encoder takes {counted(encoder.channels, 'channel')} at {encoder.hop} samples per frame, the decoder makes "
                f"{decoder.channels} at {decoder.hop}: give both the same channels and ratios"
            )
        if codebook.strides is None and not isinstance(codebook.grid(1, 1), Raster):
            raise ValueError(f"codec gives every frame its codes; {type(codebook).__name__} makes {codebook.grid(1, 1)}")
        shape = tuple(int(n) for n in media_shape) if media_shape else (encoder.channels,)
        if len(shape) > 2 or shape[0] != encoder.channels:
            raise ValueError(
                f"this codec takes sound of {counted(encoder.channels, 'channel')}, media_shape = ({encoder.channels},) or "
                f"({encoder.channels}, samples); the data has {shape}: convert it, or set the channels of encoder and decoder"
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
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.encoder.parameters()).dtype

    @property
    def latency_samples(self) -> int | None:
        """How far the sound of a stream lags behind its input; None where the codec cannot work chunk by chunk."""
        return None if why_not(self) else self.hop

    def stream(self, batch: int = 1) -> CodecStream:
        """A stream of `batch` rows, before their first sample. Raises ValueError where the codec cannot work chunk by chunk."""
        return CodecStream(self, batch)

    def _frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames of so many samples: a whole number of what the codebook codes together."""
        return frames_of(samples, self.hop * self.multiple) * self.multiple

    # ------------------------------------------------------------------------------------------------------------ networks

    def features(self, media: Tensor, lengths: Tensor | None) -> Tensor:
        """float [B, C, T], lengths in samples -> what the codebook takes, [B, D, ceil(T / hop)], zero behind a row's frames."""
        media, z = media.to(self.dtype), None
        for rows, length in groups_of(lengths, media):
            part = self.padded(media[rows, :, :length])
            part = self.encoder(part) if length else part.new_zeros(part.shape[0], self.encoder.width, 0)
            z = _placed(part, rows, z, (media.shape[0], self.encoder.width, self._frames(media.shape[2])))
        return z

    def padded(self, media: Tensor) -> Tensor:
        """float [B, C, T] continued with zeros to a whole number of what the codebook codes together, where that is several frames."""
        return F.pad(media, (0, -media.shape[2] % (self.hop * self.multiple))) if self.multiple > 1 else media

    def to_media(self, vectors: Tensor, lengths: Tensor | None, rng: RowRNG | None = None) -> Tensor:
        """float [B, D, N], lengths in frames -> [B, C, N * hop] float32 (float64 in a float64 model), zero behind a row's frames."""
        rng = None if rng is None or not self.decoder.takes_rng else rng.fork("decoder")
        vectors, media = vectors.to(self.dtype), None
        for rows, frames in groups_of(lengths, vectors):
            part = vectors[rows, :, :frames]
            part = self._decoded(part, rng, rows) if frames else part.new_zeros(part.shape[0], self.decoder.channels, 0)
            media = _placed(at_least_float32(part), rows, media, (vectors.shape[0], self.decoder.channels, vectors.shape[2] * self.hop))
        return media

    def _decoded(self, vectors: Tensor, rng: RowRNG | None, rows: slice | Tensor) -> Tensor:
        """The sound of these rows of a batch, each with its own random numbers."""
        return self.decoder(vectors) if rng is None else self.decoder(vectors, rng=rng if isinstance(rows, slice) else rng.rows(rows))

    def codes_of(self, z: Tensor, rng: RowRNG | None = None) -> Tensor:
        """float [B, D, N], N >= 0 -> int64 [B, K, N]. Changes no buffer."""
        return self.codebook.encode(z, rng) if z.shape[2] else z.new_zeros(z.shape[0], self.spec.levels, 0, dtype=torch.int64)

    def tokens_of(self, codes: Tensor, frames: Tensor | None = None) -> Tokens:
        """codes int64 [B, K, N] -> Tokens, ABSENT behind a row's `frames` int64 [B]. Their spec's grid is as long as they are."""
        if frames is not None:
            codes = codes.masked_fill(~within(frames, codes.shape[2])[:, None], ABSENT)
        grid = self.spec.grid
        spec = self.spec if grid.n in (None, codes.shape[2]) else replace(self.spec, grid=replace(grid, n=codes.shape[2]))
        return Tokens(codes, spec, frames)

    # ------------------------------------------------------------------------------------------------------------ the three

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None, sample_rate: int | None = None) -> Tokens:
        """Sound to tokens. Changes no buffer, also in training mode. No sample gives no frame.

        Args:
            media: float [B, C, T].
            lengths: int64 [B] in samples; None: all are T long.
            rng: of the codebook.
            sample_rate: of the media in Hz, where it is known.

        Returns:
            Tokens [B, K, ceil(T / hop)], ABSENT behind a row's frames.

        Raises:
            ValueError: another shape or sample rate, or values that are not finite.
        """
        lengths = check_sound(media, lengths, self.encoder.channels, self.spec.sample_rate, sample_rate)
        return self.tokens_of(self.codes_of(self.features(media, lengths), rng), None if lengths is None else self._frames(lengths))

    def prequantized(self, media: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.features(media, check_sound(media, lengths, self.encoder.channels, self.spec.sample_rate, finite=False))

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None, keep: int | None = None, samples: int | Tensor | None = None) -> Tensor:
        """Tokens to sound; absent levels add nothing.

        Args:
            tokens: [B, K, N].
            rng: of a decoder that draws.
            keep: how many of the nested levels to decode, the first ones; None: all.
            samples: of each row, an int or int64 [B]; None: N * hop.

        Returns:
            float32 [B, C, T] in [-1, 1], T = N * hop or the most of `samples`; zeros behind a row's end.

        Raises:
            ValueError: another tokenizer's tokens, masked positions, or no such levels or samples.
        """
        self.check_tokens(tokens, Frames)
        check_known(tokens)
        if keep is not None:
            if not self.spec.nested_levels or not 1 <= keep <= self.spec.levels:
                kind = f"1 to {self.spec.levels}" if self.spec.nested_levels else "all: they are not nested"
                raise ValueError(f"of {counted(self.spec.levels, 'level')} this codec decodes {kind}; got keep={keep}")
            tokens = tokens.truncate(levels=keep)
        frames = tokens.codes.shape[2]
        if not frames:
            dtype = torch.promote_types(self.dtype, torch.float32)
            return torch.zeros(tokens.batch, self.decoder.channels, 0, dtype=dtype, device=tokens.codes.device)
        media = self.to_media(self.codebook.lookup(tokens.codes), tokens.lengths, rng).clamp(-1, 1)
        if samples is None:
            return media
        ends = torch.as_tensor(samples, device=media.device)
        longest = int(ends.max())
        if not 0 <= int(ends.min()) <= longest <= media.shape[2]:
            raise ValueError(f"{frames} frames of {self.hop} samples give 0 to {media.shape[2]} samples; got samples={samples}")
        return (media * within(ends, media.shape[2])[:, None] if ends.dim() else media)[..., :longest]

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction [B, C, T] is unclamped, with gradient; the losses are those of `losses` and of the codebook."""
        media, lengths = batch.media, self.check_training(batch)
        frames = None if lengths is None else self._frames(lengths)
        z = self.features(media, lengths)
        quantized = self.codebook(z if frames is None else repeated(z, frames), rng=rng)
        reconstruction = cut(self.to_media(quantized.vectors, frames, rng), media, lengths)
        losses = {**quantized.losses, **self.further_losses(quantized, media, lengths, frames)}
        if self.losses is not None:
            losses.update(self.losses(reconstruction, media))
        return TokenizerOutput(self.tokens_of(quantized.codes, frames), losses, reconstruction)

    def check_training(self, batch: Batch) -> Tensor | None:
        """The lengths int64 [B] of a training batch in samples, None where all are whole. Raises ValueError where there is no sample."""
        media = batch.media
        lengths = check_sound(media, batch.lengths, self.encoder.channels, self.spec.sample_rate, finite=False)
        if not media.shape[2] or (lengths is not None and not int(lengths.max())):
            raise ValueError("a tokenizer of sound cannot be trained on sounds without a sample")
        return lengths

    def further_losses(self, quantized: Quantized, media: Tensor, lengths: Tensor | None, frames: Tensor | None) -> dict[str, Tensor]:
        """A subclass's losses of what was quantized, {name: weighted scalar}.

        Args:
            quantized: of the batch.
            media: float [B, C, T].
            lengths, frames: int64 [B], of each row in samples and in frames; None: all are whole.
        """
        return {}


def _placed(part: Tensor, rows: slice | Tensor, whole: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """`part` as rows of `whole`, zeros of `shape` behind and beside it; itself where it is all of it."""
    if tuple(part.shape) == shape:
        return part
    whole = part.new_zeros(shape) if whole is None else whole
    whole[rows, :, : part.shape[2]] = part
    return whole


def cut(reconstruction: Tensor, media: Tensor, lengths: Tensor | None) -> Tensor:
    """As long as the media, and zero behind each row's end."""
    reconstruction = reconstruction[..., : media.shape[2]]
    return reconstruction if lengths is None else reconstruction * within(lengths, media.shape[2])[:, None]


def repeated(z: Tensor, frames: Tensor) -> Tensor:
    """z float [B, D, N] with a row's first frames[b] >= 0 frames repeated behind its end; rows of none repeat the longest row."""
    rows = torch.where(frames > 0, torch.arange(len(z), device=z.device), frames.argmax())
    place = torch.arange(z.shape[2], device=z.device) % frames[rows][:, None]
    return z[rows].gather(2, place[:, None].expand(-1, z.shape[1], -1))
