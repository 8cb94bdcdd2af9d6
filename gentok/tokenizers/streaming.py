"""Codes and sound chunk by chunk, as the whole gives them: the `Streams` protocol over networks with `start` and `step`.

    state = codec.stream(batch=1)
    tokens = codec.encode_chunk(samples, state)        any number of samples, any number of frames, also none
    sound = codec.decode_chunk(tokens, state)          hop samples per frame
    tokens, sound = codec.flush(state)                 the last frames, and the sound that is still owed

A frame comes as soon as its last sample is there: the last sample that it may depend on. So sound lags `latency_samples` = hop samples
behind. Networks that pad with reflection begin later, since the reflected beginning is made of samples that come after it: for EnCodec both
directions wait for their first 7 frames, and catch up at once. The total of samples is frames * hop, whatever the length was: cut it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentok.interfaces import StreamingTokenizer
from gentok.tokenizers.sound_checks import check_sound
from gentok.types import Tokens

__all__ = ["CodecStream", "StreamingCodec"]


@dataclass
class CodecStream:
    """A stream's memory of a batch of rows, in each direction, and how many frames went through it. Only the codec reads it."""

    batch: int
    encoder: Any
    decoder: Any
    encoded: int = 0
    decoded: int = 0
    ended: bool = False


class StreamingCodec(StreamingTokenizer):
    """The methods of a codec (gentok/tokenizers/codec.py) that work chunk by chunk. Nothing is trained this way."""

    @property
    def latency_samples(self) -> int | None:
        """How far decoded sound lags behind the input; None where the codec cannot stream."""
        return None if self._no_stream() else self.hop

    def _no_stream(self) -> str:
        """Why this codec cannot work chunk by chunk; empty where it can."""
        if not (self.encoder.causal and self.decoder.causal):
            return "this codec looks ahead, so it cannot work chunk by chunk: build encoder and decoder with causal=true"
        if not all(hasattr(part, "step") for part in (self.encoder, self.decoder)):
            return f"{type(self.encoder).__name__} and {type(self.decoder).__name__} have no way to work chunk by chunk"
        if self.spec.strides and set(self.spec.strides) != {1}:
            return f"levels that exist at every {max(self.spec.strides)}th frame alone cannot be coded chunk by chunk"
        return ""

    def stream(self, batch: int = 1) -> CodecStream:
        """The state of `batch` rows before their first sample. Raises ValueError with a line where the codec cannot stream."""
        if reason := self._no_stream():
            raise ValueError(reason)
        return CodecStream(batch, self.encoder.start(), self.decoder.start())

    @torch.no_grad()
    def encode_chunk(self, media: Tensor, state: CodecStream) -> Tokens:
        """The next samples float [B, C, n], n >= 0 -> Tokens [B, K, m] of the frames that are complete now."""
        self._check_chunk(len(media), state)
        check_sound(media, None, self.encoder.channels, self.spec.sample_rate)
        return self._code(self.encoder.step(media.to(self._dtype), state.encoder, False), state)

    @torch.no_grad()
    def decode_chunk(self, tokens: Tokens, state: CodecStream) -> Tensor:
        """The next frames, Tokens [B, K, m], m >= 0 -> media float32 [B, C, n] in [-1, 1]."""
        self._check_tokens(tokens)
        self._check_chunk(tokens.batch, state)
        state.decoded += tokens.codes.shape[2]
        vectors = self.codebook.lookup(tokens.codes)
        return self._heard(self.decoder.step(vectors.to(self._dtype), state.decoder, False))

    @torch.no_grad()
    def flush(self, state: CodecStream) -> tuple[Tokens, Tensor]:
        """Ends the stream -> (Tokens of the samples that filled no frame yet, media that the decoder still owes). Where the stream has
        decoded all frames that it encoded, the media is that of the last frames too; otherwise of what it was given."""
        self._check_chunk(state.batch, state)
        state.ended = True
        at, own = next(self.parameters()), state.encoded == state.decoded
        tokens = self._code(self.encoder.step(at.new_empty(state.batch, self.encoder.channels, 0), state.encoder, True), state)
        vectors = self.codebook.lookup(tokens.codes if own else tokens.codes[..., :0])
        return tokens, self._heard(self.decoder.step(vectors.to(self._dtype), state.decoder, True))

    def _code(self, z: Tensor, state: CodecStream) -> Tokens:
        state.encoded += z.shape[2]
        codes = self._quantize(z, None).codes if z.shape[2] else self._no_codes(z)
        return Tokens(codes, self._spec(codes.shape[2]))

    @staticmethod
    def _heard(media: Tensor) -> Tensor:
        return (media if media.dtype == torch.float64 else media.float()).clamp(-1, 1)

    @staticmethod
    def _check_chunk(batch: int, state: CodecStream) -> None:
        if state.ended:
            raise ValueError("this stream was flushed: begin another one with stream()")
        if batch != state.batch:
            raise ValueError(f"this stream has {state.batch} row(s); the chunk has {batch}")
