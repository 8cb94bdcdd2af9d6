"""TokenFlow (Qu et al., arXiv 2412.03069): codes that say what a cell means and how it looks, from two branches under one index.

    s = projection(semantic network(media));   p = pixel encoder(media);   (s', p'), codes = dual codebook(s, p)
    reconstruction = decoder(p');   meaning = semantic decoder(s')
    loss = reconstruction terms + codebook terms + cosine * (1 - cos(meaning, teacher)) + l2 * |meaning - teacher|^2 / |teacher|^2

The teacher is the original, frozen semantic network; the branch that is quantized is that very network (frozen, the small default) or one
that is trained, from the teacher's weights (as published) or afresh. The paper writes the distillation as an l2 distance, the release
computes 1 - cosine: both are here, the cosine by default. The pixel decoder sees the pixel half alone, as in the release;
`decode_from: both` shows it both halves, which costs no code, since the index already says both.

The codebook is any that has the parts `semantic` and `pixel`: dual (one code), separate (two codes, the ablation's baseline), or
pyramid_dual, residuals at growing sizes over one dual table, which is the published multi-scale form.

Deviations: a LayerNorm before the semantic projection (Linear, Tanh, Linear as published), because maps of other networks than CLIP have
scales of their own; the l2 term is relative to the teacher's mean square, for the same reason; the semantic decoder is a transformer with
axial rotary positions instead of learnt ones, so that it takes any grid. A semantic map of another grid than the pixel branch's is resized
to it (the release resizes the image instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import Codebook, FeatureNetwork, Loss
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, ConvOptions, ConvSettings
from gentok.nn.feature_cache import Shared
from gentok.nn.rope import rotation
from gentok.nn.semantic import SemanticNetwork
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveInts
from gentok.tokenizers.base import ImageTokenizer
from gentok.types import Batch, TokenizerOutput, Tokens

__all__ = ["TokenFlow", "SemanticDecoder"]


def _between(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    """Linear, Tanh, Linear, per cell of [B, M, D]."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.Tanh(), nn.Linear(hidden, width_out))


class SemanticDecoder(nn.Module):
    """Quantized semantic halves [B, D, h, w] -> maps like the teacher's [B, out_width, h, w]: a small transformer over the cells, then
    Linear, Tanh, Linear."""

    def __init__(self, in_width: int, out_width: int, width: int, depth: int, heads: int):
        """
        Args:
            in_width: D.
            out_width: channels of the teacher's map.
            width, depth, heads: of the transformer; width / heads must be a multiple of 4.
        """
        super().__init__()
        self.stem = nn.Linear(in_width, width)
        self.body = Transformer(width, depth, heads, causal=False)
        self.head = _between(width, width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        places = torch.stack((rows.repeat_interleave(w), columns.repeat(h)), -1)
        y = self.body(self.stem(x.flatten(2).transpose(1, 2)), rotation(places, head_width=self.body.head_width))
        return self.head(y).transpose(1, 2).unflatten(2, (h, w))


class TokenFlow(ImageTokenizer, id="tokenizer/tokenflow"):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens on the grid that the codebook makes of H / stride x W / stride cells.

    Attributes:
        decode_from: the channels of the vectors that the pixel decoder sees.
    """

    decode_only = ("decoder", "post", "semantic_decoder")
    needs_parts = ("semantic", "pixel")

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        semantic: SemanticNetwork,
        teacher: SemanticNetwork | None = None,
        losses: Loss | None = None,
        cosine: NonNegativeFloat = 1.0,
        l2: NonNegativeFloat = 0.0,
        target: PositiveInt | None = None,
        decode_from: Literal["pixel", "both"] = "pixel",
        hidden: PositiveInt | None = None,
        semantic_width: PositiveInt = 128,
        semantic_depth: NonNegativeInt = 2,
        semantic_heads: PositiveInt = 4,
        pixel_width: PositiveInt | None = None,
        **networks: ConvOptions,
    ):
        """
        Args:
            codebook: one with the parts semantic and pixel.
            media_shape: (C, H, W) of the data.
            semantic: the network of the semantic branch (gentok.nn.semantic): saved where it is trained, named where it is frozen.
            teacher: the frozen network whose map is to be rebuilt; null: the semantic network itself where that is frozen, and no
                distillation where it is trained.
            losses: (reconstruction, media) -> {name: weighted scalar}; None where it is never trained.
            cosine, l2: weights of the two distances to the teacher's map.
            target: channels of the teacher's map; null: those of the semantic network (a saved model has no teacher to ask).
            decode_from: the halves that the pixel decoder sees, "pixel" or "both".
            hidden: width of the semantic projection; null: that of the semantic network.
            semantic_width, semantic_depth, semantic_heads: of the semantic decoder.
            pixel_width: channels between the pixel networks and their half of the codebook, by 1x1 convolutions, as published; null: none.
            networks: those of the pixels, as in gentok.nn.autoencoder.ConvSettings.

        Raises:
            ValueError: the codebook lacks a part, the teacher is trained or of another width, or the stride does not divide the sizes.
        """
        missing = [part for part in self.needs_parts if part not in codebook.parts]
        if missing:
            raise ValueError(
                f"tokenflow quantizes a semantic and a pixel half; the codebook {type(codebook).__name__} has no part {missing[0]!r}: "
                "take codebook=dual, codebook=separate, or a pyramid over dual"
            )
        if teacher is not None and not teacher.frozen:
            raise ValueError("a teacher is frozen: build it without trained=true")
        settings = ConvSettings(**networks)
        super().__init__(media_shape, settings.stride, codebook, losses)
        channels = self.spec.media_shape[0]
        sizes = {name: part.stop - part.start for name, part in codebook.parts.items()}
        self.semantic = semantic
        self.norm = nn.LayerNorm(semantic.width)
        self.projection = _between(semantic.width, hidden or semantic.width, sizes["semantic"])
        self.encoder = ConvEncoder(channels, pixel_width or sizes["pixel"], settings)
        self.pre = nn.Conv2d(pixel_width, sizes["pixel"], 1) if pixel_width else nn.Identity()
        self.codebook = codebook
        self.decode_from = slice(0, codebook.width) if decode_from == "both" else codebook.parts["pixel"]
        visible = self.decode_from.stop - self.decode_from.start
        self.post = nn.Conv2d(visible, pixel_width, 1) if pixel_width else nn.Identity()
        self.decoder = ConvDecoder(channels, pixel_width or visible, settings)
        target = target or semantic.width
        if teacher is not None and teacher.width != target:
            raise ValueError(f"the teacher's map has {teacher.width} channels and {target} are rebuilt: set target={teacher.width}")
        self.semantic_decoder = SemanticDecoder(sizes["semantic"], target, semantic_width, semantic_depth, semantic_heads)
        self.weights, self._teacher = {"cosine": cosine, "l2": l2}, Shared(teacher)
        semantic.name_weights()
        if teacher is not None:
            semantic.begin(teacher)

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    @property
    def teacher(self) -> SemanticNetwork | None:
        """The frozen network whose map is rebuilt, if there is one here."""
        return self._teacher.value or (self.semantic if self.semantic.frozen else None)

    def feature_networks(self) -> dict[str, FeatureNetwork]:
        return {"semantic": self.semantic, **({"teacher": self.teacher} if self.teacher is not None else {})}

    def pixels(self, media: Tensor) -> Tensor:
        """What the pixel encoder sees of the media."""
        return media

    def _features_and_map(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """media -> both halves float [B, D, h, w] and the semantic network's map [B, width, h, w]."""
        pixel = self.pre(self.encoder(self.pixels(media)))
        cells = tuple(pixel.shape[2:])
        meaning = self.semantic(media, cells)
        x = meaning.to(self.projection[0].weight.dtype).flatten(2).transpose(1, 2)
        semantic = self.projection(self.norm(x)).transpose(1, 2)
        z = torch.cat([semantic.to(pixel.dtype), pixel.flatten(2)], 1)  # the order of the codebook's parts
        return z.unflatten(2, cells), meaning

    def features(self, media: Tensor) -> Tensor:
        return self._features_and_map(media)[0]

    def to_media(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post(vectors[:, self.decode_from]))

    @torch.no_grad()
    def understand(self, tokens: Tokens) -> Tensor:
        """Tokens [B, K, N] -> the teacher's map as the codes have it, float [B, target, h, w]."""
        cells = self.cells_of(tokens)
        return self._meaning(self.codebook.lookup(tokens.codes), cells)

    def _meaning(self, vectors: Tensor, cells: Sequence[int]) -> Tensor:
        half = vectors[:, self.codebook.parts["semantic"]]
        return self.semantic_decoder(half.to(self.semantic_decoder.stem.weight.dtype).unflatten(2, tuple(cells)))

    def _distillation(self, vectors: Tensor, media: Tensor, meaning: Tensor) -> dict[str, Tensor]:
        """{name: weighted scalar}; meaning: the semantic network's map, which is the target too where that network is frozen."""
        if self.teacher is None or not any(self.weights.values()):
            return {}
        cells = tuple(meaning.shape[2:])
        target = (meaning if self.teacher is self.semantic else self.teacher(media, cells)).detach().float()
        found = self._meaning(vectors, cells).float()
        distances = {
            "cosine": lambda: 1 - F.cosine_similarity(found, target, dim=1).mean(),
            "l2": lambda: (found - target).square().mean() / target.square().mean().clamp(min=1e-12),
        }
        return {f"distill_{name}": weight * distances[name]() for name, weight in self.weights.items() if weight}

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction is unclamped, with gradient; the losses are those of `losses`, of the codebook, and distill_*."""
        spec, media = self.check_media(batch.media), batch.media
        z, meaning = self._features_and_map(media.to(self.dtype))
        return self.trained(media, spec, z, rng, lambda vectors: self._distillation(vectors, media, meaning))
