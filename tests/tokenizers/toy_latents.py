"""A tokenizer with Latents, for tests: images [B, C, H, W] <-> their patches of 2 x 2 in rotated coordinates, exactly invertible."""

import torch
import torch.nn.functional as F
from torch import nn

from gentok.interfaces import Tokenizer
from gentok.types import Latents, Raster, TokenSpec


class TurnedPatches(Tokenizer):
    def __init__(self, media_shape):
        super().__init__()
        channels, h, w = media_shape
        self.rotation = nn.Parameter(torch.linalg.qr(torch.randn(4 * channels, 4 * channels))[0])
        self.codebook = None
        self.spec = TokenSpec((), Raster(h // 2, w // 2), width=4 * channels, media_shape=tuple(media_shape))

    def encode(self, media, lengths=None, rng=None):
        x = torch.einsum("ij,bjhw->bihw", self.rotation, F.pixel_unshuffle(media, 2))
        spec = TokenSpec((), Raster(*x.shape[2:]), width=self.spec.width, media_shape=tuple(media.shape[1:]))
        return Latents(x.flatten(2), spec)

    def decode(self, tokens, rng=None):
        x = tokens.values.unflatten(2, (tokens.spec.grid.h, tokens.spec.grid.w))
        return F.pixel_shuffle(torch.einsum("ji,bjhw->bihw", self.rotation, x), 2)
