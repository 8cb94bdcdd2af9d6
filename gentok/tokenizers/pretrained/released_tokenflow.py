"""TokenFlow (Qu et al., arXiv 2412.03069) as gentok's own, with released weights or to be trained further.

Read are tokenflow_clipb_32k_enhanced.pt and tokenflow_siglip_32k.pt of ByteFlow-AI/TokenFlow (Apache-2.0), which hold the semantic
encoder as it was trained with them: CLIP's ViT-B/16 with its last norm, and the first 26 of the 27 blocks of SigLIP's SO400M. The first was
trained at 224 x 224 pixels and makes images of 256 x 256 with interpolated places (codebook.sides up to 16). Of the second, the pixel
networks see images that are resized from 384 to 432 pixels (bicubic), so that both branches have 27 x 27 cells, and what they paint is
resized back.

Places are learned, so there is one size of image. In training, the terms of the codebook are gentok's (gentok/codebooks/pyramid.py); there
is no teacher to distil from, whose networks are not in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.nn.autoencoder import ConvOptions, ConvSettings
from gentok.nn.released import fill, read_state, take
from gentok.nn.semantic import SemanticNetwork
from gentok.nn.vit import PlacedDecoder, ViTMap
from gentok.settings import PositiveInt, PositiveInts
from gentok.tokenizers.pretrained.released_vqgan import QKV, count_as_used, llamagen_layers, network_sources
from gentok.tokenizers.tokenflow import TokenFlow
from gentok.types import Tokens, TokenSpec

__all__ = ["ReleasedTokenFlow"]

MODEL = "TokenFlow"
FILES = ("tokenflow_*.pt", "*.pt", "*.safetensors")
KNOWN = re.compile(r"quantize\.embedding_vqkd\.weight")
TABLES = {"semantic": "quantize.embedding_vqkd.weight", "pixel": "quantize.embedding_vqgan.weight"}
UNUSED = re.compile(r"quantize\.codebook_used|scaling_layer\.(shift|scale)|encoder_vqkd\.vision_model\.(head|post_layernorm)\..+")
SIGLIP_LAYER = re.compile(r"encoder_vqkd\.vision_model\.encoder\.layers\.(\d+)\..+")


@dataclass(frozen=True)
class _Part:
    """What a release calls the tensors of a part.

    Attributes:
        layers: own layers or tensors -> released ones.
        blocks: where the blocks of its transformer lie.
        block: own layers or tensors of a block -> released ones, one below the other.
    """

    layers: Mapping[str, str]
    blocks: str = ""
    block: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self, key: str) -> tuple[str, ...]:
        """The released tensors that an own one is made of; () where it is none of this part's."""
        inside = re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", key)
        where, key = (f"{self.blocks}.{inside[1]}.", inside[2]) if inside else ("", key)
        names: Mapping[str, tuple[str, ...]] = self.block if inside else {own: (name,) for own, name in self.layers.items()}
        layer, _, tensor = key.rpartition(".")
        found = names.get(key) or tuple(f"{name}.{tensor}" for name in names.get(layer, ()))
        return tuple(where + name for name in found)


CLIP = _Part(
    {
        "stem": "encoder_vqkd.conv1", "class_token": "encoder_vqkd.class_embedding", "places": "encoder_vqkd.positional_embedding",
        "norm": "encoder_vqkd.ln_pre", "transformer.norm": "encoder_vqkd.ln_post",
    },
    "encoder_vqkd.transformer.resblocks",
    {
        "norm1": ("ln_1",), "norm2": ("ln_2",), "attention.qkv.weight": ("attn.in_proj_weight",),
        "attention.qkv.bias": ("attn.in_proj_bias",), "attention.out": ("attn.out_proj",), "mlp.up": ("mlp.c_fc",),
        "mlp.out": ("mlp.c_proj",),
    },
)  # fmt: skip
SIGLIP = _Part(
    {
        "stem": "encoder_vqkd.vision_model.embeddings.patch_embedding",
        "places": "encoder_vqkd.vision_model.embeddings.position_embedding.weight",
    },
    "encoder_vqkd.vision_model.encoder.layers",
    {
        "norm1": ("layer_norm1",), "norm2": ("layer_norm2",), "attention.out": ("self_attn.out_proj",), "mlp.up": ("mlp.fc1",),
        "mlp.out": ("mlp.fc2",), "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    },
)  # fmt: skip
DECODER = _Part(
    {
        "stem": "decoder_vqkd.patch_embed.proj", "class_token": "decoder_vqkd.cls_token", "places": "decoder_vqkd.pos_embed",
        "transformer.norm": "decoder_vqkd.fc_norm", "head.0": "decode_task_layer.0", "head.2": "decode_task_layer.2",
    },
    "decoder_vqkd.blocks",
    {
        "norm1": ("norm1",), "norm2": ("norm2",), "attention.qkv.weight": ("attn.qkv.weight",), "attention.out": ("attn.proj",),
        "attention.qkv.bias": ("attn.q_bias", "attn.k_bias", "attn.v_bias"), "mlp.up": ("mlp.fc1",), "mlp.out": ("mlp.fc2",),
    },
)  # fmt: skip
AROUND = _Part(
    {
        "pre": "quant_conv", "post": "post_quant_conv", "projection.0": "encode_task_layer.0", "projection.2": "encode_task_layer.2",
    }
)  # fmt: skip


class ReleasedTokenFlow(TokenFlow, id="tokenizer/tokenflow_released"):
    """Images float [B, 3, H, W] in [-1, 1] of one size <-> Tokens on a pyramid."""

    def __init__(
        self,
        codebook: Codebook,
        media_shape: PositiveInts,
        semantic: SemanticNetwork,
        target: PositiveInt,
        weights: LocalPath | None = None,
        losses: Loss | None = None,
        semantic_width: PositiveInt = 768,
        semantic_depth: PositiveInt = 3,
        semantic_heads: PositiveInt = 12,
        pixel_width: PositiveInt = 256,
        pixel_size: PositiveInt | None = None,
        **networks: ConvOptions,
    ):
        """
        Args:
            codebook: a pyramid over a dual codebook.
            media_shape: (C, H, W) of the data.
            semantic: a ViTMap.
            target: channels of the map that the semantic decoder rebuilds.
            weights: a released file, or the folder that holds it; None: random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for training.
            semantic_width, semantic_depth, semantic_heads: of the semantic decoder.
            pixel_width: channels between the pixel networks and their half of the codebook.
            pixel_size: what the pixel networks' images are resized to, pixels per side; None: they are not.
            networks: those of the pixels, as in gentok.nn.autoencoder.ConvSettings.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the settings do not fit each other or the data.
        """
        if not isinstance(semantic, ViTMap):
            raise ValueError(f"a released TokenFlow's semantic network is a gentok.nn.vit.ViTMap; got {type(semantic).__name__}")
        shape = tuple(int(n) for n in media_shape)
        seen = shape if pixel_size is None else (shape[0], pixel_size, pixel_size)
        super().__init__(codebook, seen, semantic, losses=losses, target=target, pixel_width=pixel_width, **networks)
        self.spec = replace(self.spec, media_shape=shape)
        self.norm = nn.Identity()
        half = codebook.parts["semantic"]
        self.semantic_decoder = PlacedDecoder(
            half.stop - half.start, target, semantic.side, semantic_width, semantic_depth, semantic_heads
        )
        self.pixel_size = pixel_size
        if weights is not None:
            self._load(weights, ConvSettings(**networks))
            count_as_used(codebook)
            self.needs_training = False

    # -------------------------------------------------------------------------------------------------------- the ways

    def pixels(self, media: Tensor) -> Tensor:
        return self._resized(media, (self.pixel_size, self.pixel_size))

    def to_media(self, vectors: Tensor) -> Tensor:
        return self._resized(super().to_media(vectors), self.spec.media_shape[1:])

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x if self.pixel_size is None else F.interpolate(x, size=size, mode="bicubic")

    def sized_spec(self, shape: tuple[int, ...]) -> TokenSpec:
        own = self.spec.media_shape
        raise ValueError(f"this tokenizer has places for images of {own[1]} x {own[2]}, got {shape[1]} x {shape[2]}: resize them")

    def cells_of(self, tokens: Tokens) -> tuple[int, int]:
        if self.pixel_size is None:
            return super().cells_of(tokens)
        self.check_tokens(tokens, type(self.spec.grid))
        own, found = self.spec, tuple(tokens.codes.shape)
        if tokens.spec.grid != own.grid or found[2] != own.positions:
            raise ValueError(f"this tokenizer decodes codes [B, K, {own.positions}] on {own.grid}; got {found} on {tokens.spec.grid}")
        cells = self.pixel_size // self.stride
        return cells, cells

    # -------------------------------------------------------------------------------------------------------- released

    def _load(self, path: LocalPath, settings: ConvSettings) -> None:
        state = read_state(path, MODEL, FILES, KNOWN, "a tokenizer of TokenFlow")
        if not isinstance(self.codebook, PyramidCodebook) or not isinstance(self.codebook.book, DualCodebook):
            raise ValueError(f"{path} holds a {MODEL} over codebook=pyramid_dual; configured is {type(self.codebook).__name__}")
        rows = len(self.codebook.book.weight)
        shapes = {TABLES[name]: (rows, part.stop - part.start) for name, part in self.codebook.parts.items()}
        tables = take(state, shapes, path, MODEL)
        for key in [key for key in state if key.endswith(".attn.q_bias")]:  # the release's keys have none
            state[key.replace("q_bias", "k_bias")] = torch.zeros_like(state[key])
        fill(self, dict(self._sources(settings)), state, path, MODEL, [key for key in state if self._unused(key)])
        if not self.codebook.book.weight.is_meta:
            with torch.no_grad():
                self.codebook.book.weight.copy_(torch.cat(tables, 1))

    def _unused(self, key: str) -> bool:
        """Whether a released tensor stands behind the map that is read, or is a constant or a count."""
        block = SIGLIP_LAYER.fullmatch(key)
        return UNUSED.fullmatch(key) is not None or (block is not None and int(block[1]) >= self.semantic.transformer.depth)

    def _sources(self, settings: ConvSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Own names and the released tensors that they are made of."""
        keys = list(self.state_dict())
        for side in ("encoder", "decoder"):
            yield from network_sources(keys, side, side, llamagen_layers(settings, side), QKV)
        parts = {"semantic_decoder.": DECODER, "semantic.": SIGLIP if self.semantic.class_token is None else CLIP, "": AROUND}
        for key in keys:
            prefix = next(prefix for prefix in parts if key.startswith(prefix))
            found = parts[prefix].names(key.removeprefix(prefix))
            if found:
                yield key, found

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)
