"""Vision transformers as TokenFlow's release has them (Qu et al., arXiv 2412.03069): the encoders of CLIP (Radford et al., arXiv
2103.00020) and SigLIP (Zhai et al., arXiv 2303.15343), to be trained, and the decoder that rebuilds a teacher's map.

Places are learned on a grid of one size; for images of another they are interpolated (bicubic), as DINO does (arXiv 2104.14294).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.nn.semantic import SemanticNetwork
from gentok.nn.transformer import Transformer
from gentok.settings import PositiveInt

__all__ = ["PlacedDecoder", "ViTMap", "places_at"]

FORMS: dict[str, dict[str, Any]] = {
    "clip": {"activation": "quick_gelu", "eps": 1e-5},
    "siglip": {"activation": "gelu_tanh", "eps": 1e-6},
}


def _blocks(width: int, depth: int, heads: int, hidden: int, **form: Any) -> Transformer:
    return Transformer(width, depth, heads, hidden, causal=False, qk_norm=False, bias=True, norm="layer", **form)


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02, a=-0.04, b=0.04))


def places_at(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Learned places of a square grid on another one.

    Args:
        places: float [S S, D], or [1 + S S, D] with one of a class token in front, which stays.
        grid: (h, w).

    Returns:
        float [h w, D], or [1 + h w, D].
    """
    side = math.isqrt(len(places))
    if (side, side) == tuple(grid):
        return places
    front, cells = places[: len(places) - side * side], places[len(places) - side * side :]
    # a little more than the sizes: what the releases add against rounding moves all places
    scale = tuple((n + 0.1) / side for n in grid)
    found = F.interpolate(cells.T.unflatten(1, (side, side))[None], scale_factor=scale, mode="bicubic")
    return torch.cat((front, found[0].flatten(1).T))


class ViTMap(SemanticNetwork, id="features/vit_map"):
    """The map of a vision transformer of CLIP's or SigLIP's form, trained with the tokenizer, of the image at its own size.

    Args:
        width, depth, heads, hidden: of the transformer; `depth` counts the blocks that are used.
        patch: pixels per side of a cell of its map.
        size: pixels per side of the images whose cells have learned places.
        form: "clip": a class token, norms in front of the blocks and behind them; "siglip": neither.

    Attributes:
        side: of the grid whose cells have learned places.
    """

    def __init__(
        self,
        width: PositiveInt = 768,
        depth: PositiveInt = 12,
        heads: PositiveInt = 12,
        hidden: PositiveInt = 3072,
        patch: PositiveInt = 16,
        size: PositiveInt = 224,
        form: Literal["clip", "siglip"] = "clip",
    ):
        super().__init__(frozen=False)
        clip = form == "clip"
        self.width, self.side = width, size // patch
        self.stem = nn.Conv2d(3, width, patch, stride=patch, bias=not clip)
        self.class_token = _drawn(width) if clip else None
        self.places = _drawn(clip + self.side**2, width)
        self.norm = nn.LayerNorm(width) if clip else nn.Identity()
        self.transformer = _blocks(width, depth, heads, hidden, **FORMS[form])
        if not clip:
            self.transformer.norm = nn.Identity()

    def map(self, media: Tensor) -> Tensor:
        x = self.stem(media.expand(-1, 3, -1, -1).to(self.places.dtype))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), 1)
        x = self.transformer(self.norm(x + places_at(self.places, grid)))
        return x[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


class PlacedDecoder(nn.Module):
    """Quantized semantic halves [B, D, h, w] -> maps like the teacher's [B, out_width, h, w].

    Args:
        in_width: D.
        out_width: channels of the teacher's map.
        side: of the grid whose cells have learned places.
        width, depth, heads: of the transformer, which sees a class token too.
    """

    def __init__(self, in_width: int, out_width: int, side: int, width: int, depth: int, heads: int):
        super().__init__()
        self.stem = nn.Linear(in_width, width)
        self.class_token, self.places = _drawn(1, 1, width), _drawn(1, 1 + side * side, width)
        self.transformer = _blocks(width, depth, heads, 4 * width, activation="gelu", eps=1e-6)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_width))

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        y = torch.cat((self.class_token.expand(len(x), -1, -1), self.stem(x.flatten(2).transpose(1, 2))), 1)
        y = self.transformer(y + places_at(self.places[0], grid))[:, 1:]
        return self.head(y).transpose(1, 2).unflatten(2, grid)
