"""VAR (Tian et al., arXiv 2404.02905), computed as released, so that the released weights fit.

    x_0 = class + place,   x_s = read(sum of the code vectors of the scales before s) + place + level
    p(codes of scale s) = softmax(head(transformer(x_0, ..., x_s)))

It is generator=next_scale with the blocks of the release: LayerNorm modulated by the class, attention by cosines, an
approximated GELU, and biases. The last row of the class table is the null, which guidance needs. The release's
guidance, from 1 at the first scale to 1 + cfg at the last, is guidance = 1 + cfg with guidance_schedule = linear (its
default is cfg 1.5, with top_k 900 and top_p 0.96).

Read are the class-conditional files of FoundationVision/VAR (MIT licence), var_d16.pth to var_d30.pth, over the codes
of tokenizer=var_vq. The start's own vector (pos_start) and the missing `read` of the first scale are put into the
vector of the first scale's place.

Deviations: no stochastic depth in training; the biases of keys, which the release keeps at 0, are trained; the norm
before the head has a weight and a bias besides its modulation, which begin at 1 and 0. A modulation that all blocks
share (d36, of 512 x 512 pixels) is not read.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from gentok.generators.class_raster import check_class
from gentok.generators.next_scale import NextScaleTransformer
from gentok.interfaces import Codebook, LocalPath
from gentok.nn.released import fill, read_state, take
from gentok.settings import Count, Fraction, FractionBelow1, NonNegativeFloat, PositiveInt
from gentok.types import ConditionSpec, TokenSpec

__all__ = ["VAR"]

TABLE = re.compile(r"pos_1LC")
BLOCK = {
    "attention.qkv.weight": "attn.mat_qkv.weight", "attention.qk_scale": "attn.scale_mul_1H11",
    "attention.out.weight": "attn.proj.weight", "attention.out.bias": "attn.proj.bias",
    "mlp.up.weight": "ffn.fc1.weight", "mlp.up.bias": "ffn.fc1.bias", "mlp.out.weight": "ffn.fc2.weight", "mlp.out.bias": "ffn.fc2.bias",
}  # fmt: skip
"""A block's tensors and their released names, but for those of `_rearranged`."""
PARTS = {
    "read.0.weight": "word_embed.weight", "read.0.bias": "word_embed.bias", "place_table.weight": "pos_1LC",
    "level_table.weight": "lvl_embed.weight", "head.weight": "head.weight", "head.bias": "head.bias",
    "modulation.weight": "head_nm.ada_lin.1.weight", "modulation.bias": "head_nm.ada_lin.1.bias",
}  # fmt: skip
ORDER = (4, 2, 0, 5, 3, 1)
"""Of a block's modulation: where shift, scale and gate of attention and feed-forward part lie in the file."""


class VAR(NextScaleTransformer, id="generator/var"):
    """A transformer over the scales of a pyramid, conditioned on a class.

    Args:
        spec: the tokens of a pyramid.
        condition_spec: what they are conditioned on: one class.
        codebook: whose sums are read; a frozen copy is kept, outside of the state dict.
        weights: a released file, or the folder that holds it; None: random weights.
        depth: blocks: 16, 20, 24 or 30 in the release.
        width: channels; None: 64 times the depth.
        heads: of attention; None: the depth.
        condition_dropout: share of training rows whose class becomes null, which guidance needs.
        dropout: rate, of embeddings and of both branches of a block.
        gate_init: how much smaller the weights of the branches' gates begin than others.

    Raises:
        ValueError: the tokens or the condition are others, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        weights: LocalPath | None = None,
        depth: Count = 16,
        width: PositiveInt | None = None,
        heads: PositiveInt | None = None,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.0,
        gate_init: NonNegativeFloat = 1e-3,
    ):
        name = check_class("var", condition_spec, "next_scale")
        super().__init__(
            spec, condition_spec, codebook, activation="gelu_tanh", norm="layer", bias=True, qk_norm="cosine", gate_init=gate_init,
            zero_init_head=True, width=width or 64 * depth, depth=depth, heads=heads or depth, condition_by="adaln",
            condition_dropout=condition_dropout, dropout=dropout,
        )  # fmt: skip
        for block in self.transformer.blocks:
            block.attention.qk_eps = 1e-12
        if weights is not None:
            self._load(weights, name)
            self.needs_training = False

    def _load(self, path: LocalPath, name: str) -> None:
        state = read_state(path, "VAR", ("var_d*.pth", "*.safetensors"), TABLE, "a class-conditional generator of VAR")
        if "shared_ada_lin.1.weight" in state:
            raise ValueError(f"{path} is a VAR whose blocks share their modulation (d36); those of a modulation each are read (d16 to d30)")
        sources = {own: (released,) for own, released in PARTS.items()}
        sources[f"conditioner.parts.{name}_.table.weight"] = ("class_emb.weight",)
        for i in range(self.transformer.depth):
            for own, released in BLOCK.items():
                sources[f"transformer.blocks.{i}.{own}"] = (f"blocks.{i}.{released}",)
            bias = (f"blocks.{i}.attn.{part}_bias" for part in ("q", "zero_k", "v"))
            sources[f"transformer.blocks.{i}.attention.qkv.bias"] = tuple(bias)
            for tensor in ("weight", "bias"):
                sources[f"transformer.blocks.{i}.modulation.{tensor}"] = (f"blocks.{i}.ada_lin.1.{tensor}",)
        (start,) = take(state, {"pos_start": (1, self.cells[0], self.transformer.width)}, path, "VAR")
        fill(self, sources, {key: _squeezed(key, value) for key, value in state.items()}, path, "VAR", ("lvl_1L", "attn_bias_for_masking"))
        with torch.no_grad():
            self._rearrange(start)

    def _rearrange(self, start: Tensor) -> None:
        """Puts what was read at its place: parts of modulations, and the start of the first scale, float [1, n, D]."""
        if self.head.weight.is_meta:
            return
        self.place_table.weight[: self.cells[0]] += start[0] - self.read[0].bias
        for layer, order in ((self.modulation, (1, 0)), *((block.modulation, ORDER) for block in self.transformer.blocks)):
            for tensor in (layer.weight, layer.bias):
                parts = tensor.chunk(len(order))
                tensor.copy_(torch.cat([parts[i] for i in order]))


def _squeezed(key: str, value: Tensor) -> Tensor:
    """Without the axes of length 1 in front that two released parameters have."""
    if key == "pos_1LC":
        return value.flatten(0, -2)
    return value.flatten() if key.endswith("scale_mul_1H11") else value
