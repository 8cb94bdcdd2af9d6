"""TiTok's transformers between an image and an unordered list of tokens (Yu et al., arXiv 2406.07550), as in its release.

    encoder   [class ; patches ; N learned tokens], all with learned places -> the N tokens' vectors
    decoder   [class ; one learned vector per patch ; N tokens], likewise   -> what each patch is

All see all. Blocks are those of ViT and CLIP: LayerNorm, GELU and biases. Patches are mixed from a VQGAN's code vectors (`MixedPatches`) or
are pixels (`PixelPatches`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.transformer import Transformer

__all__ = ["MixedPatches", "PixelPatches", "TokenDecoder", "TokenEncoder"]


def _vit(width: int, depth: int, heads: int) -> Transformer:
    return Transformer(width, depth, heads, causal=False, activation="gelu", qk_norm=False, bias=True, norm="layer", eps=1e-5)


def _drawn(*shape: int) -> nn.Parameter:
    """A learned table, as large at the start as in the release."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


class TokenEncoder(nn.Module):
    """media float [B, C, h patch, w patch] -> float [B, out_width, 1, N].

    Args:
        channels: C.
        out_width: of a token's vector.
        grid: (h, w), in patches.
        patch: pixels per side of a patch.
        tokens: N.
        shuffled: whether the vectors float [B, N, D] are read as [B, D, N] without being transposed, which the first release does: a
            token's vector then holds N-th parts of several.
        size: width, depth and heads of the transformer.
    """

    def __init__(self, channels: int, out_width: int, grid: tuple[int, int], patch: int, tokens: int, shuffled: bool, **size: Any):
        super().__init__()
        width, self.shuffled = size["width"], shuffled
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token, self.places = _drawn(1, width), _drawn(grid[0] * grid[1] + 1, width)
        self.tokens, self.token_places = _drawn(tokens, width), _drawn(tokens, width)
        self.norm = nn.LayerNorm(width)
        self.transformer = _vit(**size)
        self.head = nn.Linear(width, out_width)

    def forward(self, media: Tensor) -> Tensor:
        rows = len(media)
        x = torch.cat((self.class_token.expand(rows, -1, -1), self.stem(media).flatten(2).transpose(1, 2)), 1) + self.places
        x = torch.cat((x, (self.tokens + self.token_places).expand(rows, -1, -1)), 1)
        x = self.transformer(self.norm(x))[:, -len(self.tokens) :]
        if self.shuffled:
            x = x.reshape(rows, x.shape[2], x.shape[1]).transpose(1, 2)
        return self.head(x).transpose(1, 2).unsqueeze(2)


class TokenDecoder(nn.Module):
    """Token vectors float [B, in_width, 1, N] -> media float [B, C, h patch, w patch], of [0, 1], unbounded.

    Args:
        in_width: of a token's vector.
        grid: (h, w), in patches.
        tokens: N.
        patches: what makes media of the transformer's states float [B, width, h, w].
        size: width, depth and heads of the transformer.
    """

    def __init__(self, in_width: int, grid: tuple[int, int], tokens: int, patches: nn.Module, **size: Any):
        super().__init__()
        width, self.grid = size["width"], grid
        self.stem = nn.Linear(in_width, width)
        self.class_token, self.mask_token = _drawn(1, width), _drawn(1, 1, width)
        self.places, self.token_places = _drawn(grid[0] * grid[1] + 1, width), _drawn(tokens, width)
        self.norm = nn.LayerNorm(width)
        self.transformer = _vit(**size)
        self.patches = patches

    def forward(self, vectors: Tensor) -> Tensor:
        rows, count = len(vectors), len(self.places) - 1
        x = torch.cat((self.class_token[None], self.mask_token.expand(-1, count, -1)), 1) + self.places
        tokens = self.stem(vectors.flatten(2).transpose(1, 2)) + self.token_places
        x = self.transformer(self.norm(torch.cat((x.to(tokens.dtype).expand(rows, -1, -1), tokens), 1)))[:, 1 : 1 + count]
        return self.patches(x.transpose(1, 2).unflatten(2, self.grid))


class MixedPatches(nn.Module):
    """States [B, width, h, w] -> media: probabilities of a VQGAN's codes, the mean of their vectors, and its decoder.

    Args:
        width: of the states.
        codes: of the VQGAN.
        dim: of their vectors.
        vqgan: its decoder.
    """

    def __init__(self, width: int, codes: int, dim: int, vqgan: nn.Module):
        super().__init__()
        self.up, self.out = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, codes, 1)
        self.table = nn.Parameter(torch.randn(codes, dim))
        self.vqgan = vqgan

    @property
    def last_layer(self) -> Tensor:
        return self.vqgan.head.weight

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.out(self.up(x).tanh()).softmax(1).flatten(2)
        return self.vqgan((self.table.T.to(mixed.dtype) @ mixed).unflatten(2, x.shape[2:]))


class PixelPatches(nn.Module):
    """States [B, width, h, w] -> media: each patch by a linear map, and a 3x3 convolution over all.

    Args:
        width: of the states.
        channels: of the media.
        patch: pixels per side of a patch.
    """

    def __init__(self, width: int, channels: int, patch: int):
        super().__init__()
        self.patch = patch
        self.up, self.out = nn.Conv2d(width, channels * patch**2, 1), nn.Conv2d(channels, channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        return self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.pixel_shuffle(self.up(x), self.patch))
