"""transformers' ChameleonVQVAE (Chameleon, arXiv 2405.09818): the encoder and codebook of its image tokenizer.

    z = quant_conv(encoder(media));  code = argmin |z - row|

The library holds no decoder (the release of Chameleon made no pictures), so this tokenizer encodes alone: for generators of codes and for
measuring codes. `decode` stops with a line, `forward` gives no reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentok.interfaces import LocalPath, Loss
from gentok.rng import RowRNG
from gentok.tokenizers.pretrained.base import PretrainedVQ, Table
from gentok.tokenizers.pretrained.transformers_base import TransformersModel
from gentok.types import Batch, TokenizerOutput, Tokens

__all__ = ["ChameleonVQ"]


class ChameleonVQ(TransformersModel, PretrainedVQ, id="tokenizer/chameleon_vq"):
    """path: a folder of ChameleonVQVAE.save_pretrained or a hub name; or config."""

    model_name = "ChameleonVQVAE"

    def __init__(
        self,
        media_shape: Sequence[int],
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        losses: Loss | None = None,
    ):
        super().__init__(path, config, None, subfolder)
        settings = self.model.config
        self._finish(media_shape, settings.in_channels, 2 ** (len(settings.channel_multiplier) - 1), Table(self.model.quantize.embedding))

    def _features(self, media: Tensor) -> Tensor:
        return self.model.quant_conv(self.model.encoder(media))

    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        raise ValueError("ChameleonVQVAE of transformers has no decoder: its codes can be modelled and measured, but give no pictures")

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """Codes and the codebook's terms; no reconstruction, so there is nothing to be trained by."""
        media, spec = self._media(batch.media)
        quantized = self.codebook(self._features(media).flatten(2))
        return TokenizerOutput(Tokens(quantized.codes, spec), quantized.losses, None)
