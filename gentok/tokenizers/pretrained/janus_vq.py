"""transformers' JanusVQVAE: LlamaGen's VQ-16 (arXiv 2406.06525) as Janus (arXiv 2410.13848) uses it.

    z = quant_conv(encoder(media));  code = argmin |z - row|;  media = decoder(post_quant_conv(row / |row|))

LlamaGen compares z / |z| with row / |row|. transformers' port compares them as they are and normalises only what it decodes: so it is here
too, and codes are the library's; `cosine=true` gives the paper's codes. The library's decode is tied to num_patches; here any raster
decodes.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from gentok.tokenizers.pretrained.base import Pretrained

__all__ = ["JanusVQ"]


class JanusVQ(Pretrained, id="tokenizer/janus_vq"):
    """A JanusVQVAE of transformers."""

    model_name = "JanusVQVAE"
    normalize = True

    def __init__(self, *, cosine: bool = False, **model: Annotated[Any, Pretrained]):
        """
        Args:
            cosine: codes by angle, as LlamaGen.
            model: as of Pretrained.
        """
        super().__init__(**model)
        self.codebook.normalize_input = cosine

    def features(self, media: Tensor) -> Tensor:
        return self.model.quant_conv(self.model.encoder(media))

    def to_media(self, vectors: Tensor) -> Tensor:
        return self.model.decoder(self.model.post_quant_conv(vectors.contiguous()))  # another layout rounds otherwise
