"""transformers' DacModel: the Descript Audio Codec (arXiv 2306.06546; descript/dac_16khz, dac_24khz, dac_44khz on the hub).

Codes are those of DacModel.encode on the sound continued with zeros to a whole number of frames, as descript's own preprocessing has it.
The library's decoder stops short of N * hop samples where a ratio is odd (8 samples at 16 and 24 kHz): there are zeros.

gentok's own networks of the same kind take the same weights: gentok/tokenizers/pretrained/dac.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from gentok.tokenizers.pretrained.codec_base import PaddedDecoder, PaddedEncoder, TransformersCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Level, Levels

__all__ = ["TransformersDac"]


class DacLevel(Level):
    """A DacVectorQuantize: projections and a table, chosen from by angle."""

    by_angle = projected = True

    @property
    def rows(self) -> Tensor:
        return self.layer.codebook.weight

    def inward(self, x: Tensor) -> Tensor:
        return self.layer.in_proj(x)

    def outward(self, y: Tensor) -> Tensor:
        return self.layer.out_proj(y)


class TransformersDac(TransformersCodec, id="tokenizer/transformers_dac"):
    """A DacModel of transformers."""

    model_name = "DacModel"

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[PaddedEncoder, Levels, PaddedDecoder]:
        settings = model.config
        branch = Branch(first_levels(model.quantizer.quantizers, levels, DacLevel))
        codebook = Levels([branch], settings.hidden_size, settings.commitment_loss_weight, summed=True)
        shape = (1, settings.hidden_size, settings.hop_length)
        return PaddedEncoder(model.encoder, *shape), codebook, PaddedDecoder(model.decoder, *shape)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.model.conv2.weight
