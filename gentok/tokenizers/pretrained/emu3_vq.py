"""transformers' Emu3VQVAE (Emu3, arXiv 2409.18869), a video tokenizer, on single images.

An image is a clip of `temporal_downsample_factor` equal frames, which becomes one frame of codes; of the decoded frames the first is the
image, as in the library:

    z = quant_conv(encoder(clip));  code = argmin |z - row|;  media = decoder(post_quant_conv(row), row)[:, 0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentok.interfaces import LocalPath, Loss
from gentok.tokenizers.pretrained.base import PretrainedVQ, Table
from gentok.tokenizers.pretrained.transformers_base import TransformersModel

__all__ = ["Emu3VQ"]


class Emu3VQ(TransformersModel, PretrainedVQ, id="tokenizer/emu3_vq"):
    """path: a folder of Emu3VQVAE.save_pretrained or a hub name; or config."""

    model_name = "Emu3VQVAE"

    def __init__(
        self,
        media_shape: Sequence[int],
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        losses: Loss | None = None,
    ):
        super().__init__(path, config, losses, subfolder)
        settings = self.model.config
        self._finish(media_shape, settings.in_channels, 2 ** (len(settings.channel_multiplier) - 1), Table(self.model.quantize.embedding))

    @property
    def last_layer(self) -> Tensor:
        return self.model.decoder.conv_out.weight

    def _features(self, media: Tensor) -> Tensor:
        clip = media[:, None].expand(-1, self.model.config.temporal_downsample_factor, -1, -1, -1)
        hidden = self.model.encoder(clip.contiguous())  # [B, 1, D, h, w]
        return self.model.quant_conv(hidden.transpose(1, 2))[:, :, 0]

    def _pictures(self, vectors: Tensor) -> Tensor:
        quantized = vectors[:, :, None]  # [B, D, 1, h, w]
        hidden = self.model.post_quant_conv(quantized)
        frames = self.model.decoder(hidden.transpose(1, 2), quantized.transpose(1, 2))
        settings = self.model.config
        h, w = (n * self.stride for n in vectors.shape[2:])
        return frames.reshape(len(vectors), settings.temporal_downsample_factor, settings.out_channels, h, w)[:, 0]
