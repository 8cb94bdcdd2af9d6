"""transformers' HiggsAudioV2TokenizerModel (bosonai/higgs-audio-v2-tokenizer on the hub): 24 kHz, 25 frames per second.

X-Codec's kind (gentok/tokenizers/pretrained/transformers_xcodec.py), but the semantic network hears the sound at 16 kHz and every second of
its frames is taken, and each level has projections around its table. Codes are those of the model's encode, at the bandwidth of `levels`
levels, on the sound continued with zeros to a whole number of frames. The release has a licence of its own, Boson AI's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gentok.tokenizers.pretrained.codec_base import Half
from gentok.tokenizers.pretrained.levels import Levels
from gentok.tokenizers.pretrained.transformers_encodec import TransformersEncodecLevel
from gentok.tokenizers.pretrained.transformers_xcodec import TransformersXcodec, TransformersXcodecEncoder, xcodec_parts

__all__ = ["TransformersHiggs"]

SIDE = 160
"""Zeros before and behind the sound that the semantic network hears, whatever its rate."""


class HiggsLevel(TransformersEncodecLevel):
    """A HiggsAudioV2TokenizerVectorQuantization: a table that the library averages, between projections."""

    projected = True

    def inward(self, x: Tensor) -> Tensor:
        return self.layer.project_in(x.transpose(1, 2)).transpose(1, 2)

    def outward(self, y: Tensor) -> Tensor:
        return self.layer.project_out(y.transpose(1, 2)).transpose(1, 2)


class TransformersHiggsEncoder(TransformersXcodecEncoder):
    def __init__(self, model: nn.Module, channels: int, width: int, hop: int, settings: Any):
        super().__init__(model, channels, width, hop)
        self.rates, self.step = (settings.sample_rate, settings.semantic_sample_rate), settings.semantic_downsample_factor

    def meaning(self, x: Tensor) -> Tensor:
        from torchaudio.functional import resample  # without which the library has no such model

        return self.states(resample(x, *self.rates), SIDE)[:, :: self.step]


class TransformersHiggs(TransformersXcodec, id="tokenizer/transformers_higgs"):
    """A HiggsAudioV2TokenizerModel of transformers. 1 level is 0.25 kbit/s, 8 are 2."""

    model_name = "HiggsAudioV2TokenizerModel"

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, Levels, Half]:
        return xcodec_parts(model, levels, lambda *parts: TransformersHiggsEncoder(*parts, model.config), HiggsLevel)
