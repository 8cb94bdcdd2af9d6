"""transformers' ChameleonVQVAE (Chameleon, arXiv 2405.09818): the encoder and codebook of its image tokenizer.

    z = quant_conv(encoder(media));  code = argmin |z - row|

The library holds no decoder (the release of Chameleon made no images), so this tokenizer encodes alone: for generators of codes and for
measuring codes. `decode` raises ValueError, `forward` gives no reconstruction.
"""

from __future__ import annotations

from torch import Tensor

from gentok.rng import RowRNG
from gentok.tokenizers.pretrained.base import Pretrained
from gentok.types import Batch, TokenizerOutput, Tokens

__all__ = ["ChameleonVQ"]


class ChameleonVQ(Pretrained, id="tokenizer/chameleon_vq"):
    """A ChameleonVQVAE of transformers."""

    model_name = "ChameleonVQVAE"
    last_layer = None

    def features(self, media: Tensor) -> Tensor:
        return self.model.quant_conv(self.model.encoder(media))

    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        """Raises ValueError: there is no decoder."""
        raise ValueError("ChameleonVQVAE of transformers has no decoder: its codes can be modelled and measured, but give no images")

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """Codes and the codebook's terms; no reconstruction, so there is nothing to be trained by."""
        spec = self.check_media(batch.media)
        quantized = self.codebook(self.features(batch.media.to(self.dtype)).flatten(2))
        return TokenizerOutput(Tokens(quantized.codes, spec), quantized.losses, None)
