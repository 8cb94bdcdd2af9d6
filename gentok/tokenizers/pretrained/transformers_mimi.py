"""transformers' MimiModel (Mimi of Moshi, arXiv 2410.00037; kyutai/mimi on the hub): 12.5 frames per second.

Level 0 is the semantic one, the others acoustic; both quantise the same latent side by side, so there are no nearest codes of a vector.
Codes are those of MimiModel.encode with `levels` quantizers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gentok.nn.conv1d import weight_of
from gentok.tokenizers.pretrained.base import settings_of
from gentok.tokenizers.pretrained.codec_base import Half, TransformersCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Level, Levels

__all__ = ["TransformersMimi"]


class MimiLevel(Level):
    """A MimiVectorQuantization: a table that the library averages, kept as sums and counts."""

    @property
    def rows(self) -> Tensor:
        table = self.layer.codebook
        return table.embed_sum / table.cluster_usage.clamp(min=table.epsilon)[:, None]


class TransformersMimiEncoder(Half):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, use_streaming=False).latents


class TransformersMimiDecoder(Half):
    def forward(self, z: Tensor) -> Tensor:
        return self.model(z).audio_values


class TransformersMimi(TransformersCodec, id="tokenizer/transformers_mimi"):
    """A MimiModel of transformers. Of its 32 levels at least the semantic one and one more are used (Moshi uses 8)."""

    model_name = "MimiModel"

    @staticmethod
    def config_of(model: nn.Module) -> dict[str, Any]:
        given = vars(model.config).get("_frame_rate")  # which the library stores under another name than it reads
        return {**settings_of("transformers", model), **({} if given is None else {"frame_rate": given})}

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[TransformersMimiEncoder, Levels, TransformersMimiDecoder]:
        settings, split = model.config, model.quantizer
        semantic = settings.num_semantic_quantizers
        if levels is not None and not semantic < levels <= settings.num_quantizers:
            raise ValueError(f"this model has {semantic + 1} to {settings.num_quantizers} levels; got tokenizer.levels={levels}")
        branches = [
            Branch(first_levels(part.layers, count, MimiLevel), part.input_proj, part.output_proj)
            for part, count in (
                (split.semantic_residual_vector_quantizer, None),
                (split.acoustic_residual_vector_quantizer, None if levels is None else levels - semantic),
            )
        ]
        shape = (settings.audio_channels, settings.hidden_size, int(settings.sampling_rate / settings.frame_rate))
        codebook = Levels(branches, settings.hidden_size)
        return TransformersMimiEncoder(model.encoder, *shape), codebook, TransformersMimiDecoder(model.decoder, *shape)

    @property
    def last_layer(self) -> Tensor:
        return weight_of(self.decoder.model.decoder_seanet.layers[-1].conv)
