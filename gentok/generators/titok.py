"""TiTok's generators (Yu et al., arXiv 2406.07550), computed as released, so that the released weights fit.

    x = (class, code or mask of every token) + place;   p(code of a masked token) = softmax(head(transformer(x)))

It is generator=masked with the blocks of BERT: LayerNorm behind each sum and before the first block, biases, and neither rotations nor
QK-norm. The last row of the class table is the null, which guidance needs. The release draws with sampler=maskgit sampler.schedule=arccos
sampler.steps=8; its guidance_scale s is guidance = 1 + s with guidance_schedule = linear.

Read are the class-conditional files of bytedance/1d-tokenizer (Apache-2.0), generator_titok_l32.bin and generator_titok_b64.bin, over the
codes of tokenizer=titok. What the release adds to every token (its type) is put into places. That of S-128 is generator=titok_uvit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gentok.generators.class_raster import check_class
from gentok.generators.masked import MaskedTransformer
from gentok.interfaces import LocalPath
from gentok.nn.released import fill, read_state, take
from gentok.settings import Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import ConditionSpec, Line, TokenSpec

__all__ = ["TiTokMasked"]

BLOCK = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",), "mlp.up": ("intermediate.dense",), "mlp.out": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}  # fmt: skip
"""A block's layers and their released names."""


class TiTokMasked(MaskedTransformer, id="generator/titok"):
    """Predicts all masked tokens of a line from the visible ones and a class.

    Args:
        spec: the tokens: one code each, on a line.
        condition_spec: what they are conditioned on: one class.
        weights: a released file, or the folder that holds it; None: random weights.
        width: channels.
        depth: blocks.
        heads: of attention.
        hidden: width of the feed-forward part.
        objective: as in MaskedTransformer.
        schedule: of the masked share in training.
        label_smoothing: of the training loss, from 0 to 1.
        condition_dropout: share of training rows whose class becomes null, which guidance needs.
        dropout: rate, of embeddings and of both branches of a block.

    Raises:
        ValueError: the tokens or the condition are others, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    network: ClassVar[Mapping[str, Any]] = {"norm": "layer", "bias": True, "eps": 1e-12, "post_norm": True}
    head_bias = True
    known: ClassVar[re.Pattern[str]] = re.compile(r"model\.embeddings\.position_embeddings\.weight")
    of: ClassVar[str] = "L-32 or B-64"

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        weights: LocalPath | None = None,
        width: PositiveInt = 768,
        depth: Count = 24,
        heads: PositiveInt = 16,
        hidden: PositiveInt = 3072,
        objective: Literal["maskgit", "elbo", "any_order"] = "maskgit",
        schedule: str = "arccos",
        label_smoothing: Fraction = 0.1,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.1,
    ):
        if spec.levels != 1 or not isinstance(spec.grid, Line) or spec.grid.n is None:
            raise ValueError(f"titok models one code per token of a line; these tokens are {spec.describe()}: use masked")
        name = check_class("titok", condition_spec, "masked")
        settings: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "dropout": dropout}
        super().__init__(
            spec, condition_spec, activation="gelu", objective=objective, schedule=schedule, label_smoothing=label_smoothing,
            zero_init_head=True, condition_by="prefix", condition_dropout=condition_dropout, rope="none", qk_norm=False, **settings,
        )  # fmt: skip
        if weights is not None:
            self._load(weights, name)
            self.needs_training = False

    @torch.no_grad()
    def _load(self, path: LocalPath, name: str) -> None:
        files = ("generator_titok*.bin", "model.safetensors", "*.bin", "*.safetensors")
        state = read_state(path, "TiTok generator", files, self.known, f"a generator of TiTok ({self.of})")
        table = self.conditioner.parts[f"{name}_"].table.weight
        embeddings, place = self._taken(state, path, self.spec.vocab + 1 + len(table))
        fill(self, self._sources(), state, path, "TiTok generator", ("model.embeddings.position_ids",))
        if table.is_meta:
            return
        codes = self.spec.vocab
        self.token_table.weight[: codes + 1].copy_(embeddings[: codes + 1])  # codes, then the id of a masked token
        self.token_table.weight[codes + 1 :].zero_()  # of absent tokens, which the release does not have
        table.copy_(embeddings[codes + 1 :] + place[0])
        self.place_table.weight.copy_(place[1:])

    def _taken(self, state: dict[str, Tensor], path: LocalPath, ids: int) -> tuple[Tensor, Tensor]:
        """Taken out of `state`: of all ids float [ids, D], and what is added to the class and to every token, float [1 + N, D]."""
        width, inside = self.transformer.width, "model.embeddings."
        shapes = {
            f"{inside}word_embeddings.weight": (ids, width), f"{inside}position_embeddings.weight": (self.spec.positions + 1, width),
            f"{inside}token_type_embeddings.weight": (2, width),
        }  # fmt: skip
        embeddings, place, kind = take(state, shapes, path, "TiTok generator")
        return embeddings, place + kind[0]

    def _sources(self) -> dict[str, tuple[str, ...]]:
        """Own names and the released tensors that they are made of."""
        layers: dict[str, tuple[str, ...]] = {"head": ("model.lm_head",), "transformer.norm": ("model.embeddings.LayerNorm",)}
        for i in range(self.transformer.depth):
            at = f"model.encoder.layer.{i}."
            layers |= {f"transformer.blocks.{i}.{own}": tuple(at + part for part in parts) for own, parts in BLOCK.items()}
        return {f"{own}.{t}": tuple(f"{part}.{t}" for part in parts) for own, parts in layers.items() for t in ("weight", "bias")}
