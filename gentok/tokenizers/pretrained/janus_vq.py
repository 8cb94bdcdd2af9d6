"""transformers' JanusVQVAE: LlamaGen's VQ-16 (arXiv 2406.06525) as Janus (arXiv 2410.13848) uses it.

    z = quant_conv(encoder(media));  code = argmin |z - row|;  media = decoder(post_quant_conv(row / |row|))

LlamaGen compares z / |z| with row / |row|. transformers' port compares them as they are and normalises only what it decodes: so it is here
too, and codes are the library's; `cosine=true` gives the paper's codes. The library's decode is tied to num_patches; here any raster
decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentok.interfaces import LocalPath, Loss
from gentok.tokenizers.pretrained.base import PretrainedVQ, Table
from gentok.tokenizers.pretrained.transformers_base import TransformersModel

__all__ = ["JanusVQ"]


class JanusVQ(TransformersModel, PretrainedVQ, id="tokenizer/janus_vq"):
    """path: a folder of JanusVQVAE.save_pretrained or a hub name; or config. cosine: codes by angle, as LlamaGen."""

    model_name = "JanusVQVAE"

    def __init__(
        self,
        media_shape: Sequence[int],
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        cosine: bool = False,
        losses: Loss | None = None,
    ):
        super().__init__(path, config, losses, subfolder)
        settings = self.model.config
        table = Table(self.model.quantize.embedding, normalize=True, normalize_input=cosine)
        self._finish(media_shape, settings.in_channels, 2 ** (len(settings.channel_multiplier) - 1), table)

    @property
    def last_layer(self) -> Tensor:
        return self.model.decoder.conv_out.weight

    def _features(self, media: Tensor) -> Tensor:
        return self.model.quant_conv(self.model.encoder(media))

    def _pictures(self, vectors: Tensor) -> Tensor:
        return self.model.decoder(self.model.post_quant_conv(vectors))
