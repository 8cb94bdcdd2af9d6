"""transformers' Emu3VQVAE (Emu3, arXiv 2409.18869), a video tokenizer, on single images.

An image is a clip of `temporal_downsample_factor` equal frames, which becomes one frame of codes; of the decoded frames the first is the
image, as in the library:

    z = quant_conv(encoder(clip));  code = argmin |z - row|;  media = decoder(post_quant_conv(row), row)[:, 0]
"""

from __future__ import annotations

from torch import Tensor

from gentok.tokenizers.pretrained.base import Pretrained

__all__ = ["Emu3VQ"]


class Emu3VQ(Pretrained, id="tokenizer/emu3_vq"):
    """An Emu3VQVAE of transformers."""

    model_name = "Emu3VQVAE"

    def features(self, media: Tensor) -> Tensor:
        clip = media[:, None].expand(-1, self.model.config.temporal_downsample_factor, -1, -1, -1)
        hidden = self.model.encoder(clip.contiguous())  # [B, 1, D, h, w]
        return self.model.quant_conv(hidden.transpose(1, 2))[:, :, 0]

    def to_media(self, vectors: Tensor) -> Tensor:
        quantized = vectors.contiguous()[:, :, None]  # [B, D, 1, h, w]; contiguous, since another layout rounds otherwise
        hidden = self.model.post_quant_conv(quantized)
        frames = self.model.decoder(hidden.transpose(1, 2), quantized.transpose(1, 2))
        settings = self.model.config
        h, w = (n * self.stride for n in vectors.shape[2:])
        return frames.reshape(len(vectors), settings.temporal_downsample_factor, settings.out_channels, h, w)[:, 0]
