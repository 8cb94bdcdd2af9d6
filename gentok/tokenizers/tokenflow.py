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
to it (the release resizes the picture instead).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import Codebook, FeatureNetwork, Loss, Tokenizer
from gentok.nn.autoencoder import ConvDecoder, ConvEncoder, stride_of
from gentok.nn.feature_cache import Shared
from gentok.nn.rope import rotation
from gentok.nn.semantic import SemanticNetwork
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.tokenizers.base import cells_of, check_images, grid_fields, sized_spec
from gentok.types import Batch, TokenizerOutput, Tokens, TokenSpec

__all__ = ["TokenFlow", "SemanticDecoder"]


def _between(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    """Linear, Tanh, Linear, per cell of [B, M, D]."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.Tanh(), nn.Linear(hidden, width_out))


class SemanticDecoder(nn.Module):
    """Quantized semantic halves [B, D, h, w] -> maps like the teacher's [B, out_width, h, w]: a small transformer over the cells, then
    Linear, Tanh, Linear. head_width must be a multiple of 4."""

    def __init__(self, in_width: int, out_width: int, width: int, depth: int, heads: int):
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


class TokenFlow(Tokenizer, id="tokenizer/tokenflow"):
    """Images float [B, C, H, W] in [-1, 1] <-> Tokens on the grid that the codebook makes of H / stride x W / stride cells.

    codebook: one with the parts semantic and pixel. semantic: the network of the semantic branch (gentok.nn.semantic), saved with the
    tokenizer where it is trained and named where it is frozen. teacher: the frozen network whose map is to be rebuilt; null means the
    semantic network itself where that is frozen, and no distillation where it is trained. cosine, l2: weights of the two distances to
    the teacher's map; target: its channels, null where they are the semantic network's (a saved model has no teacher to ask).
    losses: (reconstruction, media) -> {name: weighted scalar}, or None where it is never trained. decode_from: "pixel" or "both" halves.
    hidden: of the semantic projection; null: the semantic network's width. semantic_width, semantic_depth, semantic_heads: of the
    semantic decoder. pixel_width: channels between the pixel networks and their half of the codebook, by 1x1 convolutions, as published;
    null: none. width, multipliers, blocks, attention, patch, decoder_width: of the pixel networks, see gentok.nn.autoencoder.
    """

    decode_only = ("decoder", "post", "semantic_decoder")
    """Prefixes of the parameters that codes do not depend on."""
    needs_parts = ("semantic", "pixel")
    """What the codebook must have."""

    def __init__(
        self,
        codebook: Codebook,
        media_shape: Sequence[int],
        semantic: SemanticNetwork,
        teacher: SemanticNetwork | None = None,
        losses: Loss | None = None,
        cosine: float = 1.0,
        l2: float = 0.0,
        target: int | None = None,
        decode_from: str = "pixel",
        hidden: int | None = None,
        semantic_width: int = 128,
        semantic_depth: int = 2,
        semantic_heads: int = 4,
        pixel_width: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = False,
        patch: int = 2,
        decoder_width: int | None = None,
    ):
        super().__init__()
        if len(media_shape) != 3:
            raise ValueError(f"tokenflow needs media_shape = (channels, height, width); got {tuple(media_shape)}")
        missing = [part for part in self.needs_parts if part not in codebook.parts]
        if missing:
            raise ValueError(
                f"tokenflow quantizes a semantic and a pixel half; the codebook {type(codebook).__name__} has no part {missing[0]!r}: "
                "take codebook=dual, codebook=separate, or a pyramid over dual"
            )
        if decode_from not in ("pixel", "both"):
            raise ValueError(f"tokenflow decodes from decode_from=pixel or decode_from=both; got {decode_from!r}")
        if teacher is not None and not teacher.frozen:
            raise ValueError("a teacher is frozen: build it without trained=true")
        channels, height, side = (int(n) for n in media_shape)
        self.stride = stride_of(multipliers, patch)
        if height % self.stride or side % self.stride:
            raise ValueError(
                f"tokenflow with {len(multipliers)} multipliers and patch {patch} takes sizes that {self.stride} divides; "
                f"the data has {height} x {side}: resize or pad it, or change multipliers or patch"
            )
        sizes = {name: part.stop - part.start for name, part in codebook.parts.items()}
        common = {"multipliers": tuple(multipliers), "blocks": blocks, "attention": attention, "patch": patch}
        self.semantic = semantic
        self.norm = nn.LayerNorm(semantic.width)
        self.projection = _between(semantic.width, hidden or semantic.width, sizes["semantic"])
        self.encoder = ConvEncoder(channels, pixel_width or sizes["pixel"], width=width, **common)
        self.pre = nn.Conv2d(pixel_width, sizes["pixel"], 1) if pixel_width else nn.Identity()
        self.codebook = codebook
        self.decode_from = slice(0, codebook.width) if decode_from == "both" else codebook.parts["pixel"]
        seen = self.decode_from.stop - self.decode_from.start
        self.post = nn.Conv2d(seen, pixel_width, 1) if pixel_width else nn.Identity()
        self.decoder = ConvDecoder(channels, pixel_width or seen, width=decoder_width or width, **common)
        target = target or semantic.width
        if teacher is not None and teacher.width != target:
            raise ValueError(f"the teacher's map has {teacher.width} channels and {target} are rebuilt: set target={teacher.width}")
        self.semantic_decoder = SemanticDecoder(sizes["semantic"], target, semantic_width, semantic_depth, semantic_heads)
        self.losses, self.weights, self._teacher = losses, {"cosine": cosine, "l2": l2}, Shared(teacher)
        semantic.name_weights()
        if teacher is not None:
            semantic.begin(teacher)
        self.spec = TokenSpec(
            vocab_sizes=tuple(codebook.vocab_sizes),
            **grid_fields(height // self.stride, side // self.stride, codebook),
            nested_levels=codebook.nested_levels,
            media_shape=(channels, height, side),
        )

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.head.weight

    @property
    def teacher(self) -> SemanticNetwork | None:
        """The frozen network whose map is rebuilt, if there is one here."""
        return self._teacher.value or (self.semantic if self.semantic.frozen else None)

    def feature_networks(self) -> dict[str, FeatureNetwork]:
        return {"semantic": self.semantic, **({"teacher": self.teacher} if self.teacher is not None else {})}

    def _features(self, media: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, TokenSpec]:
        """media -> both halves float [B, D, M], the cells' grid (h, w), the semantic network's map [B, width, h, w], and their spec."""
        check_images(media, self.spec.media_shape[0], self.stride)
        spec = sized_spec(self.spec, media, self.stride, self.codebook)
        pixel = self.pre(self.encoder(media.to(self.encoder.stem.weight.dtype)))
        meaning = self.semantic(media, tuple(pixel.shape[2:]))
        x = meaning.to(self.norm.weight.dtype).flatten(2).transpose(1, 2)
        semantic = self.projection(self.norm(x)).transpose(1, 2)
        z = torch.cat([semantic.to(pixel.dtype), pixel.flatten(2)], 1)  # the order of the codebook's parts
        return z, tuple(pixel.shape[2:]), meaning, spec

    def _media(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        z = vectors[:, self.decode_from].to(self.decoder.stem.weight.dtype).unflatten(2, grid)
        media = self.decoder(self.post(z))
        return media if media.dtype == torch.float64 else media.float()

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens:
        """media float [B, C, H, W] -> Tokens [B, K, N]. Changes no buffer, also in training mode. Images have no lengths."""
        z, _, _, spec = self._features(media)
        training = self.codebook.training
        self.codebook.eval()
        try:
            codes = self.codebook(z, rng=rng).codes
        finally:
            self.codebook.train(training)
        return Tokens(codes, spec)

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        """Tokens [B, K, N] -> media float32 [B, C, H, W] in [-1, 1]; absent levels add nothing."""
        return self._media(self.codebook.lookup(tokens.codes), self._cells(tokens)).clamp(-1, 1)

    @torch.no_grad()
    def understand(self, tokens: Tokens) -> Tensor:
        """Tokens [B, K, N] -> what they say the teacher saw, float [B, teacher's width, h, w]."""
        return self._meaning(self.codebook.lookup(tokens.codes), self._cells(tokens))

    def _cells(self, tokens: Tokens) -> tuple[int, int]:
        """(h, w) of the cells that tokens were made from. Raises ValueError on tokens of another tokenizer."""
        if tokens.spec.vocab_sizes != self.spec.vocab_sizes:
            raise ValueError(f"these tokens are of another tokenizer: {tokens.spec.describe()}; this one makes {self.spec.describe()}")
        return cells_of(tokens, self.stride, self.codebook)

    def _meaning(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        half = vectors[:, self.codebook.parts["semantic"]]
        return self.semantic_decoder(half.to(self.semantic_decoder.stem.weight.dtype).unflatten(2, grid))

    def _distillation(self, vectors: Tensor, grid: tuple[int, int], media: Tensor, meaning: Tensor) -> dict[str, Tensor]:
        """{name: weighted scalar}; meaning: the semantic network's map, which is the target too where that network is frozen."""
        if self.teacher is None or not any(self.weights.values()):
            return {}
        target = (meaning if self.teacher is self.semantic else self.teacher(media, grid)).detach().float()
        found = self._meaning(vectors, grid).float()
        distances = {
            "cosine": lambda: 1 - F.cosine_similarity(found, target, dim=1).mean(),
            "l2": lambda: (found - target).square().mean() / target.square().mean().clamp(min=1e-12),
        }
        return {f"distill_{name}": weight * distances[name]() for name, weight in self.weights.items() if weight}

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """The reconstruction is unclamped, with gradient; losses are those of `losses`, of the codebook, and distill_*."""
        z, grid, meaning, spec = self._features(batch.media)
        quantized = self.codebook(z, rng=rng)
        reconstruction = self._media(quantized.vectors, grid)
        losses = {**quantized.losses, **self._distillation(quantized.vectors, grid, batch.media, meaning)}
        if self.losses is not None:
            losses.update(self.losses(reconstruction, batch.media))
        return TokenizerOutput(Tokens(quantized.codes, spec), losses, reconstruction)
