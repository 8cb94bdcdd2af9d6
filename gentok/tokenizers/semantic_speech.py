"""A supervised speech tokenizer: codes that hold the spoken words, learnt from transcripts (GLM-4-Voice, arXiv 2412.02612; CosyVoice's S3,
arXiv 2407.05407).

    z = encoder(sound), 12.5 vectors per second;  vectors, codes = codebook(z)
    text:   CTC(recogniser(vectors), transcript)                            (Graves et al., ICML 2006)
    sound:  mel = decoder.mel(sg vectors), |mel - log-mel of the sound|;  reconstruction = vocoder(mel), and the terms of `losses` on it

Codes are learnt from the transcripts alone: the decoder's gradient does not reach the encoder (`acoustic`: that share of it does). A codec
of the same rate keeps the sound and loses the words.

Deviations: both losses are trained at once, as one model (the papers train the decoder on frozen codes); CTC in place of an attention
decoder; the decoder predicts the mel's mean, where GLM-4-Voice samples it by flow matching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.interfaces import Codebook, Loss
from gentok.nn.speech import Recogniser, SpeechDecoder, SpeechEncoder
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, PositiveInt
from gentok.tokenizers.codec import Codec, cut, repeated
from gentok.tokenizers.sound_checks import check_known, frames_of, within
from gentok.tokenizers.texts import bound_to_texts
from gentok.types import Batch, ConditionSpec, Frames, Ids, TokenizerOutput, Tokens

__all__ = ["SemanticSpeech"]


class SemanticSpeech(Codec, id="tokenizer/semantic_speech"):
    """Speech float [B, 1, T] in [-1, 1] <-> Tokens [B, K, ceil(T / hop)] on Frames."""

    decode_only = ("decoder", "recogniser")

    @classmethod
    def bind_to_data(cls, config: Mapping[str, Any], condition_spec: ConditionSpec) -> dict[str, Any]:
        return bound_to_texts(config, condition_spec)

    def __init__(
        self,
        encoder: SpeechEncoder,
        codebook: Codebook,
        decoder: SpeechDecoder,
        sample_rate: PositiveInt,
        symbols: str | Sequence[str],
        recogniser: dict[str, Any] | None = None,
        ctc: NonNegativeFloat = 1.0,
        mel: NonNegativeFloat = 1.0,
        acoustic: NonNegativeFloat = 0.0,
        losses: Loss | None = None,
        media_shape: Sequence[PositiveInt] | None = None,
    ):
        """
        Args:
            encoder, codebook, decoder, sample_rate, media_shape: as of Codec, with the networks of gentok.nn.speech.
            symbols: of the transcripts, in the order of their ids; filled in from the data's `text`.
            recogniser: settings of gentok.nn.speech.Recogniser.
            ctc, mel: weights of the losses.
            acoustic: share of the decoder's gradient that reaches the codes, 0 for none.
            losses: (reconstruction, media) -> {name: weighted scalar}; None: the vocoder is not trained.

        Raises:
            ValueError: there are no symbols, a weight is negative, or the parts do not fit each other.
        """
        super().__init__(encoder, codebook, decoder, sample_rate, losses, media_shape)
        if not symbols:
            raise ValueError("semantic_speech learns from transcripts: use data with a text (data.captions=ids, or strings of digits)")
        if decoder.upsample * decoder.vocoder.hop != encoder.hop or decoder.vocoder.hop != encoder.mel.hop:
            raise ValueError(
                f"the decoder's mel has {decoder.vocoder.hop} samples per frame, the encoder's {encoder.mel.hop}: give the vocoder its hop"
            )
        self.symbols = tuple(symbols)
        self.ctc, self.mel, self.acoustic = ctc, mel, acoustic
        self.recogniser = Recogniser(codebook.width, len(self.symbols), block=encoder.block, **(recogniser or {}))

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction [B, 1, T] is unclamped; None without `losses`. Rows go through the networks together, attention masked at
        their ends. Raises ValueError where the batch has no transcripts."""
        media, text = batch.media, batch.condition.parts.get("text")
        lengths = self.check_training(batch)
        if not isinstance(text, Ids):
            raise ValueError("semantic_speech learns from transcripts, and these items have no `text`: data.captions=ids, or other data")
        frames = None if lengths is None else frames_of(lengths, self.hop)
        z = self.encoder(media.to(self.dtype), frames)
        quantized = self.codebook(z if frames is None else repeated(z, frames), rng=rng)
        losses, vectors = dict(quantized.losses), quantized.vectors
        losses["ctc"] = self.ctc * self._recognition(vectors, frames, text.ids)
        detached = vectors.detach()
        made = self.decoder.mel(detached + self.acoustic * (vectors - detached) if self.acoustic else detached, frames)
        losses["mel"] = self.mel * self._mel_distance(made, media, frames)
        reconstruction = None
        if self.losses is not None:
            reconstruction = cut(self.decoder.vocoder(made).float(), media, lengths)
            losses.update(self.losses(reconstruction, media))
        return TokenizerOutput(self.tokens_of(quantized.codes, frames), losses, reconstruction)

    def _recognition(self, vectors: Tensor, frames: Tensor | None, ids: Tensor) -> Tensor:
        """CTC in nats per symbol, the mean over rows; one whose transcript does not fit into its frames counts as 0."""
        logits = self.recogniser(vectors, frames)
        ends = torch.full((len(ids),), logits.shape[1], device=ids.device) if frames is None else frames * self.recogniser.upsample
        written = (ids >= 0).sum(1)
        with torch.autocast(logits.device.type, enabled=False):
            log_p = logits.float().log_softmax(2).transpose(0, 1)
            return F.ctc_loss(log_p, ids.clamp(min=0), ends, written, blank=len(self.symbols), reduction="mean", zero_infinity=True)

    def _mel_distance(self, made: Tensor, media: Tensor, frames: Tensor | None) -> Tensor:
        """Mean absolute error of the log-mel, over frames within each row's vectors."""
        real = self.encoder.mel(F.pad(media, (0, -media.shape[2] % self.hop)))
        distance = (made.float() - real).abs().mean(1)
        if frames is None:
            return distance.mean()
        inside = within(frames * self.decoder.upsample, distance.shape[1])
        return (distance * inside).sum() / inside.sum().clamp(min=1)

    @torch.no_grad()
    def scores(self, batch: Batch, tokens: Tokens) -> dict[str, Tensor]:
        """{"transcripts_right": float [B], 1 where the whole transcript of an item is recognised in its codes}."""
        written = ["".join(self.symbols[i] for i in row if i >= 0) for row in batch.condition.parts["text"].ids.tolist()]
        right = [float(read == text) for read, text in zip(self.transcribe(tokens), written)]
        return {"transcripts_right": torch.tensor(right, device=batch.media.device)}

    @torch.no_grad()
    def transcribe(self, tokens: Tokens) -> list[str]:
        """The text that the recogniser reads in codes: the most probable symbol of every frame, repetitions and blanks taken out."""
        self.check_tokens(tokens, Frames)
        check_known(tokens)
        if not tokens.codes.shape[2]:
            return [""] * tokens.batch
        best = self.recogniser(self.codebook.lookup(tokens.codes), tokens.lengths).argmax(2)
        out = []
        for row, path in enumerate(best.tolist()):
            path = path if tokens.lengths is None else path[: int(tokens.lengths[row]) * self.recogniser.upsample]
            out.append("".join(self.symbols[i] for i, before in zip(path, [None, *path]) if i != before and i < len(self.symbols)))
        return out
