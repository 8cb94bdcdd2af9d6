"""transformers' Xcodec2Model (X-Codec 2 of Llasa, arXiv 2502.04128; HKUSTAudio/xcodec2-hf on the hub): 50 codes of 65,536 per second.

    meaning = adapter(w2v-BERT(mel));  z = project_in(fc(meaning, acoustic encoder(sound)));  code = FSQ(bound(z))
    sound = decoder(project_out(vectors)): convolutions, a transformer over all frames, an inverse STFT

Codes are those of Xcodec2Model.encode, of the spectrogram of its feature extractor, on the sound continued with zeros to a whole number of
frames. The values are bounded twice, as in the release: once here, once by the FSQ. w2v-BERT is never trained.

Deviation: the library's feature extractor always puts a zero behind the sound, which makes a frame more of one that is a whole number of
frames long; here such a sound has no more frames than it fills.

The released weights are licensed for non-commercial use (CC-BY-NC 4.0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.fsq import FSQ
from gentok.nn.kaldi import KaldiMel
from gentok.tokenizers.pretrained.codec_base import Half, SemanticModel, TransformersCodec, check_levels

__all__ = ["TransformersXcodec2"]

SAMPLE_RATE, HOP = 16000, 320
"""What the spectrogram of the feature extractor is made for: two frames of it are a frame of codes."""


class Bound(nn.Module):
    """Float [..., D] -> [..., D] within the range of the library's FSQ."""

    def __init__(self, quantizer: nn.Module):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tensor:
        return self.quantizer.bound(z)


class TransformersXcodec2Encoder(Half):
    def __init__(self, model: nn.Module, channels: int, width: int, hop: int):
        super().__init__(model, channels, width, hop)
        self.mel = KaldiMel(SAMPLE_RATE)

    def forward(self, x: Tensor) -> Tensor:
        x, side = F.pad(x, (0, -x.shape[2] % self.hop)), self.hop // 2
        mel = self.mel(F.pad(x[:, 0], (side, side)))
        states = self.model["semantic"](mel.view(len(mel), -1, 2 * mel.shape[2]).to(x.dtype)).last_hidden_state
        meaning = self.model["adapter"](states.transpose(1, 2))
        z = torch.cat([meaning, self.model["acoustic"](x)], 1)
        return self.model["project"](z.transpose(1, 2)).transpose(1, 2)


class TransformersXcodec2Decoder(Half):
    def forward(self, z: Tensor) -> Tensor:
        return self.model(z.transpose(1, 2))


class TransformersXcodec2(TransformersCodec, id="tokenizer/transformers_xcodec2"):
    """An Xcodec2Model of transformers."""

    model_name = "Xcodec2Model"
    downloads = False

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, FSQ, Half]:
        check_levels(levels, 1)
        settings, quantizer = model.config, model.quantizer
        if (settings.sampling_rate, settings.hop_length) != (SAMPLE_RATE, HOP):
            raise ValueError(
                f"X-Codec 2 has {HOP} samples of {SAMPLE_RATE} Hz in a frame, as its spectrogram; this configuration has "
                f"{settings.hop_length} of {settings.sampling_rate} Hz"
            )
        project = nn.Sequential(model.fc_encoder, quantizer.project_in, Bound(quantizer.quantizer))
        semantic = {"semantic": SemanticModel(model.semantic_encoder), "adapter": model.semantic_adapter}
        encoder = nn.ModuleDict({**semantic, "acoustic": model.acoustic_encoder, "project": project})
        decoder = nn.Sequential(quantizer.project_out, model.acoustic_decoder)
        shape = (1, len(settings.quantization_levels), HOP)
        codebook = FSQ(settings.quantization_levels)
        return TransformersXcodec2Encoder(encoder, *shape), codebook, TransformersXcodec2Decoder(decoder, *shape)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.model[1].head.linear.weight
