"""transformers' XcodecModel (X-Codec, arXiv 2408.17175; hf-audio/xcodec-hubert-librispeech and the like on the hub): 50 frames per second.

    meaning = adapter(mean of the hidden states of HuBERT or WavLM);  z = fc(DAC's encoder(sound), meaning)
    codes = residual quantizer(z);  sound = DAC's decoder(fc2(vectors))

Codes are those of XcodecModel.encode, at the bandwidth of `levels` levels, on the sound continued with zeros to a whole number of frames,
as its feature extractor has it. The semantic network is never trained, as in the paper. Its decoder of meaning, by whose loss the release
was trained, takes no part in codes or sound and is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.tokenizers.pretrained.codec_base import Half, SemanticModel, TransformersCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Level, Levels
from gentok.tokenizers.pretrained.transformers_encodec import TransformersEncodecLevel

__all__ = ["TransformersXcodec", "TransformersXcodecEncoder", "xcodec_parts"]


class TransformersXcodecEncoder(Half):
    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[2] % self.hop))
        meaning = self.model["adapter"](self.meaning(x).transpose(1, 2))
        return self.model["fc"](torch.cat([self.model["acoustic"](x), meaning], 1).transpose(1, 2)).transpose(1, 2)

    def meaning(self, x: Tensor) -> Tensor:
        """Sound float [B, 1, N * hop] -> the mean of the semantic network's hidden states, [B, N, D]."""
        return self.states(x, self.hop // 2)

    def states(self, x: Tensor, side: int) -> Tensor:
        """That mean at the network's own rate. side: zeros before and behind the sound."""
        states = self.model["semantic"](F.pad(x[:, 0], (side, side)), output_hidden_states=True).hidden_states
        return torch.stack(states, 1).mean(1)


class TransformersXcodecDecoder(Half):
    def forward(self, z: Tensor) -> Tensor:
        return self.model["acoustic"](self.model["fc"](z.transpose(1, 2)).transpose(1, 2))


def xcodec_parts(
    model: nn.Module,
    levels: int | None,
    encoder: Callable[[nn.Module, int, int, int], Half] = TransformersXcodecEncoder,
    level: type[Level] = TransformersEncodecLevel,
) -> tuple[Half, Levels, Half]:
    """The parts of a model of X-Codec's kind.

    Args:
        model: the library's.
        levels: the first ones to use; None: all.
        encoder: of the networks acoustic, semantic, adapter and fc.
        level: of its quantizer.
    """
    settings = model.config
    semantic = {"semantic": SemanticModel(model.semantic_model), "adapter": model.encoder_semantic}
    heard = nn.ModuleDict({"acoustic": model.acoustic_encoder, **semantic, "fc": model.fc})
    said = nn.ModuleDict({"fc": model.fc2, "acoustic": model.acoustic_decoder})
    codebook = Levels([Branch(first_levels(model.quantizer.quantizers, levels, level))], settings.hidden_size)
    shape = (1, settings.hidden_size, settings.hop_length)
    return encoder(heard, *shape), codebook, TransformersXcodecDecoder(said, *shape)


class TransformersXcodec(TransformersCodec, id="tokenizer/transformers_xcodec"):
    """An XcodecModel of transformers. 1 level is 0.5 kbit/s, 8 are 4."""

    model_name = "XcodecModel"
    rate_name = "sample_rate"
    downloads = False

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, Levels, Half]:
        return xcodec_parts(model, levels)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.model["acoustic"].conv2.weight
