"""transformers' XcodecModel (X-Codec, arXiv 2408.17175; hf-audio/xcodec-hubert-librispeech and the like on the hub): 50 frames per second.

    meaning = adapter(mean of the hidden states of HuBERT or WavLM);  z = fc(DAC's encoder(sound), meaning)
    codes = residual quantizer(z);  sound = DAC's decoder(fc2(vectors))

Codes are those of XcodecModel.encode, at the bandwidth of `levels` levels, on the sound continued with zeros to a whole number of frames,
as its feature extractor has it. The semantic network is never trained, as in the paper. Its decoder of meaning, by whose loss the release
was trained, takes no part in codes or sound and is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.tokenizers.pretrained.codec_base import Half, SemanticModel, TransformersCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Levels
from gentok.tokenizers.pretrained.transformers_encodec import TransformersEncodecLevel

__all__ = ["TransformersXcodec"]


class TransformersXcodecEncoder(Half):
    def forward(self, x: Tensor) -> Tensor:
        x, side = F.pad(x, (0, -x.shape[2] % self.hop)), self.hop // 2
        states = self.model["semantic"](F.pad(x[:, 0], (side, side)), output_hidden_states=True).hidden_states
        meaning = self.model["adapter"](torch.stack(states, 1).mean(1).transpose(1, 2))
        z = torch.cat([self.model["acoustic"](x), meaning], 1)
        return self.model["fc"](z.transpose(1, 2)).transpose(1, 2)


class TransformersXcodecDecoder(Half):
    def forward(self, z: Tensor) -> Tensor:
        return self.model["acoustic"](self.model["fc"](z.transpose(1, 2)).transpose(1, 2))


class TransformersXcodec(TransformersCodec, id="tokenizer/transformers_xcodec"):
    """An XcodecModel of transformers. 1 level is 0.5 kbit/s, 8 are 4."""

    model_name = "XcodecModel"
    rate_name = "sample_rate"
    downloads = False

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, Levels, Half]:
        settings = model.config
        semantic = {"semantic": SemanticModel(model.semantic_model), "adapter": model.encoder_semantic}
        encoder = nn.ModuleDict({"acoustic": model.acoustic_encoder, **semantic, "fc": model.fc})
        decoder = nn.ModuleDict({"fc": model.fc2, "acoustic": model.acoustic_decoder})
        codebook = Levels([Branch(first_levels(model.quantizer.quantizers, levels, TransformersEncodecLevel))], settings.hidden_size)
        shape = (1, settings.hidden_size, settings.hop_length)
        return TransformersXcodecEncoder(encoder, *shape), codebook, TransformersXcodecDecoder(decoder, *shape)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.model["acoustic"].conv2.weight
