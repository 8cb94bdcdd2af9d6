"""TiTok (Yu et al., arXiv 2406.07550): an image as 32 to 256 tokens in no order, with released weights or to be trained.

    z = encoder(media);  code = argmin |z / |z| - row / |row||;  media = decoder(row / |row|)

Read are the files of bytedance/1d-tokenizer (Apache-2.0): tokenizer_titok_l32, _b64 and _s128 (patches: vqgan; the decoder mixes code
vectors of MaskGIT's VQGAN, whose decoder paints), and tokenizer_titok_bl64_vq8k, _bl128_vq8k and _sl256_vq8k (patches: pixels). The
networks are gentok's (gentok/nn/titok.py). The release's images are in [0, 1], here they are in [-1, 1] as everywhere.

The places of patches are learned, so there is one size of image. In training, the terms of the codebook are the same; those of the
reconstruction are what `losses` says. The release trained the decoder alone at the end: freeze=[encoder,codebook].

Deviations: the first stage of its training, whose decoder predicts codes of MaskGIT's VQGAN, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from gentok.errors import counted
from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.nn.maskgit_vqgan import MaskGITDecoder, maskgit_layers
from gentok.nn.released import channels_outermost, fill, read_state
from gentok.nn.titok import MixedPatches, PixelPatches, TokenDecoder, TokenEncoder
from gentok.settings import PositiveInt, PositiveInts
from gentok.tokenizers.base import ImageTokenizer
from gentok.tokenizers.pretrained.released_vqgan import count_as_used, network_sources
from gentok.types import Line, Raster, Tokens

__all__ = ["TiTok"]

SIZES = {"S": (512, 8, 8), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Width, depth and heads of the release."""
KNOWN = re.compile(r"encoder\.latent_token_positional_embedding")
BLOCK = {
    "norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.in_proj_", "attention.out": "attn.out_proj", "mlp.up": "mlp.c_fc",
    "mlp.out": "mlp.c_proj",
}  # fmt: skip
ENDS = {"norm": "ln_pre", "transformer.norm": "ln_post"}
LEARNED = {
    "class_token": "class_embedding", "mask_token": "mask_token", "places": "positional_embedding",
    "token_places": "latent_token_positional_embedding",
}  # fmt: skip


class TiTok(ImageTokenizer, id="tokenizer/titok"):
    """Images float [B, C, H, W] in [-1, 1] of one size <-> Tokens on a Line."""

    decode_only = ("decoder",)
    one_code_per_cell = True

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        weights: LocalPath | None = None,
        losses: Loss | None = None,
        tokens: PositiveInt = 32,
        encoder: Literal["S", "B", "L"] = "L",
        decoder: Literal["S", "B", "L"] = "L",
        width: PositiveInt | None = None,
        depth: PositiveInt | None = None,
        heads: PositiveInt | None = None,
        patch: PositiveInt = 16,
        patches: Literal["vqgan", "pixels"] = "vqgan",
        vqgan_codes: PositiveInt = 1024,
        vqgan_dim: PositiveInt = 256,
        vqgan_width: PositiveInt = 128,
        vqgan_multipliers: PositiveInts = (1, 1, 2, 2, 4),
    ):
        """
        Args:
            codebook: a VQ without projections.
            media_shape: (C, H, W) of the data.
            weights: a released file, or the folder that holds it; None: random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for training.
            tokens: of an image.
            encoder, decoder: sizes of the release.
            width, depth, heads: of both transformers; None: as their sizes say.
            patch: pixels per side of a patch.
            patches: how the decoder makes them: of a VQGAN's code vectors, or pixels.
            vqgan_codes, vqgan_dim: number and width of these vectors.
            vqgan_width, vqgan_multipliers: of its decoder.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the settings do not fit each other or the data.
        """
        if not isinstance(codebook.grid(1, tokens), Raster):
            raise ValueError(f"titok needs a codebook with one code per token; {type(codebook).__name__} lays codes on another grid")
        if patches == "vqgan" and patch != 2 ** (len(vqgan_multipliers) - 1):
            raise ValueError(f"titok's patches have the stride of the VQGAN, {2 ** (len(vqgan_multipliers) - 1)}; got patch={patch}")
        super().__init__(media_shape, patch, codebook, losses)
        channels, height, width_of_media = self.spec.media_shape
        grid = (height // patch, width_of_media // patch)
        own = {"width": width, "depth": depth, "heads": heads}
        there, back = ({n: own[n] or SIZES[size][i] for i, n in enumerate(own)} for size in (encoder, decoder))
        self.encoder = TokenEncoder(channels, codebook.in_width, grid, patch, tokens, patches == "vqgan", **there)
        self.codebook = codebook
        if patches == "vqgan":
            vqgan = MaskGITDecoder(channels, vqgan_dim, vqgan_width, vqgan_multipliers)
            paint: MixedPatches | PixelPatches = MixedPatches(back["width"], vqgan_codes, vqgan_dim, vqgan)
        else:
            paint = PixelPatches(back["width"], channels, patch)
        self.decoder = TokenDecoder(codebook.width, grid, tokens, paint, **back)
        self.spec = replace(self.spec, grid=Line(tokens), latent_positions=None)
        if weights is not None:
            self._load(weights, len(vqgan_multipliers))
            count_as_used(codebook)
            self.needs_training = False

    @property
    def last_layer(self) -> Tensor | None:
        return self.decoder.patches.last_layer

    # -------------------------------------------------------------------------------------------------------- the ways

    def features(self, media: Tensor) -> Tensor:
        return self.encoder((media + 1) / 2)

    def to_media(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors) * 2 - 1

    def sized_spec(self, shape: tuple[int, ...]) -> Any:
        own = self.spec.media_shape
        raise ValueError(f"titok has learned places for images of {own[1]} x {own[2]}, got {shape[1]} x {shape[2]}: resize them")

    def cells_of(self, tokens: Tokens) -> tuple[int, int]:
        self.check_tokens(tokens, Line)
        found, own = tokens.codes.shape[2], self.spec.positions
        if found != own:
            raise ValueError(f"this tokenizer decodes {counted(own, 'token')} on a line; got {found}")
        return 1, own

    # -------------------------------------------------------------------------------------------------------- released

    def _load(self, path: LocalPath, stages: int) -> None:
        files = ("tokenizer_titok*.bin", "model.safetensors", "*.bin", "*.safetensors")
        state = read_state(path, "TiTok", files, KNOWN, "a tokenizer of TiTok")
        fill(self, self._sources(stages), state, path, "TiTok")
        if isinstance(self.decoder.patches, PixelPatches):
            channels_outermost(self.decoder.patches.up, self.decoder.patches.patch)

    def _sources(self, stages: int) -> dict[str, tuple[str, ...]]:
        """Own names and the released tensors that they are made of."""
        found = {"codebook.weight": "quantize.embedding.weight", "encoder.tokens": "latent_tokens"}
        mixed = isinstance(self.decoder.patches, MixedPatches)
        layers = {
            "encoder": {"stem": "patch_embed", "head": "conv_out"},
            "decoder": {"stem": "decoder_embed", "patches.up": "ffn.0", "patches.out": "ffn.2" if mixed else "conv_out"},
        }
        for side, names in layers.items():
            for key in self.state_dict():
                place, _, tensor = key.removeprefix(f"{side}.").rpartition(".")
                block = re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", place)
                if not key.startswith(f"{side}.") or key in found or place.startswith("patches.vqgan"):
                    continue
                if not place:
                    found[key] = f"{side}.{LEARNED[tensor]}"
                elif block:
                    layer = BLOCK[block[2]]
                    found[key] = f"{side}.transformer.{block[1]}.{layer}{'' if layer.endswith('_') else '.'}{tensor}"
                elif place != "patches":
                    found[key] = f"{side}.{(ENDS | names)[place]}.{tensor}"
        sources = {own: (released,) for own, released in found.items()}
        if mixed:
            sources["decoder.patches.table"] = ("pixel_quantize.embedding.weight",)
            names = maskgit_layers(stages, 2, "decoder")
            own = {"skip": ("nin_shortcut",), "conv": ("upsample_conv",)}
            sources |= dict(network_sources(self.state_dict(), "decoder.patches.vqgan", "pixel_decoder", names, own))
        return sources

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)
