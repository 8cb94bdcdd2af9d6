"""transformers' EncodecModel (EnCodec, arXiv 2210.13438; facebook/encodec_24khz and facebook/encodec_32khz on the hub).

Codes are those of EncodecModel.encode at the bandwidth of `levels` levels. The model of 48 kHz normalises segments of a second and sends
the scale of each beside the codes: it is no map of codes to sound, and refused.
"""

from __future__ import annotations

from torch import Tensor, nn

from gentok.nn.conv1d import weight_of
from gentok.tokenizers.pretrained.codec_base import Half, TransformersCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Level, Levels

__all__ = ["TransformersEncodec", "SIDE_VALUES"]

SIDE_VALUES = (
    "this EnCodec (the one of 48 kHz) sends the scale of every segment beside its codes, so codes alone do not decode to sound: "
    "use the model of 24 kHz or 32 kHz"
)


class TransformersEncodecLevel(Level):
    """An EncodecVectorQuantization: a table that the library averages."""

    @property
    def rows(self) -> Tensor:
        return self.layer.codebook.embed


class TransformersEncodec(TransformersCodec, id="tokenizer/transformers_encodec"):
    """An EncodecModel of transformers, of 24 or 32 kHz. At 24 kHz 2 levels are 1.5 kbit/s, 8 are 6, 32 are 24."""

    model_name = "EncodecModel"

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, Levels, Half]:
        settings = model.config
        if settings.normalize or settings.chunk_length_s is not None:
            raise ValueError(SIDE_VALUES)
        codebook = Levels([Branch(first_levels(model.quantizer.layers, levels, TransformersEncodecLevel))], settings.hidden_size)
        shape = (settings.audio_channels, settings.hidden_size, settings.hop_length)
        return Half(model.encoder, *shape), codebook, Half(model.decoder, *shape)

    @property
    def last_layer(self) -> Tensor:
        return weight_of(self.decoder.model.layers[-1].conv)
