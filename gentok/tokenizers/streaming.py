"""A codec chunk by chunk: the codes and the sound that the whole gives. Its networks stream by gentok/nn/streaming.py.

    stream = codec.stream(batch=1)
    tokens = stream.encode(samples)        any number of samples, any number of frames, also none
    sound = stream.decode(tokens)          hop samples per frame
    tokens, sound = stream.flush()         the last frames, and the sound that is still owed

A frame comes as soon as its last sample is there: the last sample that it may depend on. So sound lags `latency_samples` = hop samples
behind. Networks that pad with reflection begin later, since the reflected beginning is made of samples that come after it: for EnCodec both
directions wait for their first 7 frames, and catch up at once. The total of samples is frames * hop, whatever the length was: cut it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gentok.errors import counted
from gentok.interfaces import TokenizerStream
from gentok.precision import at_least_float32
from gentok.tokenizers.sound_checks import check_known, check_sound
from gentok.types import Frames, Tokens

if TYPE_CHECKING:
    from gentok.tokenizers.codec import Codec

__all__ = ["CodecStream", "why_not"]


def why_not(codec: Codec) -> str:
    """Why this codec cannot work chunk by chunk; empty where it can."""
    if not (codec.encoder.causal and codec.decoder.causal):
        return "this codec looks ahead, so it cannot work chunk by chunk: build encoder and decoder with causal=true, if they have it"
    if codec.spec.strides and set(codec.spec.strides) != {1}:
        return f"levels that exist at every {max(codec.spec.strides)}th frame alone cannot be coded chunk by chunk"
    return ""


class CodecStream(TokenizerStream):
    """A batch of rows on their way through a codec, in each direction. Nothing is trained this way."""

    def __init__(self, codec: Codec, batch: int):
        """
        Args:
            codec: gentok.tokenizers.codec.Codec.
            batch: rows.

        Raises:
            ValueError: the codec cannot work chunk by chunk.
        """
        if reason := why_not(codec):
            raise ValueError(reason)
        self.codec, self.batch = codec, batch
        self.encoder, self.decoder = codec.encoder.init_state(), codec.decoder.init_state()
        self.encoded = self.decoded = 0  # frames
        self.ended = False

    @torch.no_grad()
    def encode(self, media: Tensor) -> Tokens:
        self._check(len(media))
        check_sound(media, None, self.codec.encoder.channels, self.codec.spec.sample_rate)
        return self._code(media.to(self.codec.dtype))

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        self.codec.check_tokens(tokens, Frames)
        check_known(tokens)
        self._check(tokens.batch)
        self.decoded += tokens.codes.shape[2]
        return self._sound(tokens.codes)

    @torch.no_grad()
    def flush(self) -> tuple[Tokens, Tensor]:
        self._check(self.batch)
        self.ended = True
        both = self.encoded == self.decoded
        tokens = self._code(next(self.codec.parameters()).new_empty(self.batch, self.codec.encoder.channels, 0), last=True)
        return tokens, self._sound(tokens.codes if both else tokens.codes[..., :0], last=True)

    def _code(self, media: Tensor, last: bool = False) -> Tokens:
        z = self.codec.encoder.step(media, self.encoder, last)
        self.encoded += z.shape[2]
        return self.codec.tokens_of(self.codec.codes_of(z))

    def _sound(self, codes: Tensor, last: bool = False) -> Tensor:
        vectors = self.codec.codebook.lookup(codes).to(self.codec.dtype)
        return at_least_float32(self.codec.decoder.step(vectors, self.decoder, last)).clamp(-1, 1)

    def _check(self, batch: int) -> None:
        if self.ended:
            raise ValueError("this stream was flushed: begin another one with stream()")
        if batch != self.batch:
            raise ValueError(f"this stream has {counted(self.batch, 'row')}; the chunk has {batch}")
