"""RAR (Yu et al., arXiv 2411.00776), computed as released, in raster order, so that the released weights fit.

    c_i = class + time_i,   x_i = (class where i = 0, else code of cell i - 1) + place_i
    p(code of cell i) = softmax(head(transformer(x_-1, x_0, ..., x_i), modulated by c_i))

x_-1 is a learned vector that stands before all. Blocks are those of DiT and ViT: LayerNorm, modulated by class and step (adaLN-zero),
queries and keys by a LayerNorm each, GELU, and biases. The last row of the class table is the null, which guidance needs.

Read are the class-conditional files of bytedance/1d-tokenizer (Apache-2.0), rar_b.bin to rar_xxl.bin, over the codes of
tokenizer=maskgit_vq. What the release adds to itself is added on loading: the place of the cell that a step holds and of the cell that it
predicts, and the weight and bias of a norm that is modulated afterwards. The release draws with guidance_schedule = cosine:2.75 and
guidance = 16 (B), cosine:2.5 and 15.5 (L), cosine:1.5 and 6.9 (XL), cosine:1.2 and 8 (XXL).

Deviations: orders other than raster, in which the release begins its training and whose share it lowers to none, are left out: next cells
are named by one table in place of two.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.generators.class_raster import ClassRaster, check_class, check_raster
from gentok.interfaces import LocalPath
from gentok.nn.kv_cache import KVCache, Window
from gentok.nn.linear import Linear, activations
from gentok.nn.released import fill, read_state, take
from gentok.nn.token_transformer import TransformerSettings, initialise_parts
from gentok.nn.transformer import dropout as dropped
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import Condition, ConditionSpec, TokenSpec

__all__ = ["RAR", "SIZES"]

SIZES = {"B": (768, 24, 16, 3072), "L": (1024, 24, 16, 4096), "XL": (1280, 32, 16, 5120), "XXL": (1408, 40, 16, 6144)}
"""Width, depth, heads and hidden width of the release."""
KNOWN = re.compile(r"target_aware_pos_embed")
NORM = {"attention.qk_scale": ("attn.q_norm.weight", "attn.k_norm.weight"), "attention.qk_shift": ("attn.q_norm.bias", "attn.k_norm.bias")}
LAYERS = {
    "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "mlp.up": "mlp.fc1", "mlp.out": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}  # fmt: skip
"""A block's layers and their released names."""


class RAR(ClassRaster, id="generator/rar"):
    """A causal transformer over the cells of a raster, modulated by a class and the step.

    Args:
        spec: the tokens: one code per cell.
        condition_spec: what they are conditioned on: one class.
        weights: a released file, or the folder that holds it; None: random weights.
        size: of the release: B, L, XL or XXL.
        width: channels; None: as `size` says.
        depth: blocks; None: as `size` says.
        heads: of attention; None: as `size` says.
        hidden: width of the feed-forward part; None: as `size` says.
        condition_dropout: share of training rows whose class becomes null, which guidance needs.
        dropout: rate, of embeddings and of both branches of a block.

    Raises:
        ValueError: the tokens or the condition are others, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        weights: LocalPath | None = None,
        size: Literal["B", "L", "XL", "XXL"] = "B",
        width: PositiveInt | None = None,
        depth: Count | None = None,
        heads: PositiveInt | None = None,
        hidden: PositiveInt | None = None,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.1,
    ):
        check_raster("rar", spec)
        name = check_class("rar", condition_spec, "autoregressive")
        width, depth, heads, hidden = (own or released for own, released in zip((width, depth, heads, hidden), SIZES[size]))
        settings = TransformerSettings(
            width, depth, heads, hidden, condition_by="adaln", condition_dropout=condition_dropout, qk_norm="layer", dropout=dropout
        )
        super().__init__(spec, condition_spec, settings, "raster", 0.0, False, activation="gelu", norm="layer", bias=True)
        self.first = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.token_table = nn.Embedding(spec.vocab, width)
        self.place_table = nn.Embedding(spec.positions, width)
        self.time_table = nn.Embedding(spec.positions + 1, width)
        self.modulation = nn.Linear(width, 2 * width)  # of the norm before the head
        self.head = Linear(width, spec.vocab, True)
        initialise_parts(self.token_table, self.place_table, self.time_table, self.modulation, self.head)
        nn.init.zeros_(self.modulation.weight)
        if weights is not None:
            self._load(weights, name)
            self.needs_training = False

    # ------------------------------------------------------------------------------------------------ network

    def _embed(self, ids: Tensor, given: Tensor, steps: Tensor | slice) -> Tensor:
        """ids int64 [B, S, 1], the class's vector float [B, 1, D] -> [B, S, D]; a cell without a code reads as its place alone."""
        x = self.token_table(ids[..., 0].clamp(0, self.spec.vocab - 1)).masked_fill(ids < 0, 0.0)
        return torch.where(ids == self.spec.vocab, given.to(x.dtype), x) + self.place_table.weight[steps]

    def _given(self, condition: Condition, batch: int) -> Tensor:
        """float [B, 1, D]: the class."""
        vector = self.conditioner(condition, batch).vector
        assert vector is not None
        return vector[:, None]

    def _scores(self, hidden: Tensor, given: Tensor) -> Tensor:
        """hidden float [B, S, D], modulated by given float [B, S, D] -> [B, S, V]."""
        shift, scale = activations(self.modulation(F.silu(given))).chunk(2, -1)
        return self.head(activations(hidden) * (1 + scale) + shift)

    def _predict(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        self.check_shape(codes)
        given = self._given(condition, len(codes))
        x = self._embed(self.feed(codes), given, slice(None))
        x = dropped(torch.cat((self.first.to(x.dtype).expand(len(x), -1, -1), x), 1), self.dropout, rng)
        given = given + self.time_table.weight
        return self._scores(self.trunk(x, vector=given, rng=rng)[:, 1:], given[:, 1:])

    # ------------------------------------------------------------------------------------------------- Causal

    def _extend(self, x: Tensor, given: Tensor, cache: KVCache, window: Window) -> Tensor:
        """The steps of a window, each modulated by its own vector: x and given float [B, S, D] -> [B, S, D]."""
        cache.modulation = [block.modulate(given) for block in self.trunk.blocks]
        hidden = self.trunk.extend(x, None, cache, window)
        cache.modulation = None  # of these steps alone
        return hidden

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        """As Causal.init_cache."""
        cache = self.trunk.init_cache(batch, capacity, 1)
        cache.begin = self._given(condition, batch)
        window = cache.window(torch.full((batch,), -1, device=cache.begin.device), 1)
        self._extend(self.first.expand(batch, -1, -1), cache.begin + self.time_table.weight[0], cache, window)
        return cache

    def logits(self, ids: Tensor, cache: KVCache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits; what is predicted at fed steps beyond the layout's end is unspecified."""
        window = cache.window(at, ids.shape[1], parents)
        steps = self._fed_steps(window, cache, at, ids.shape[1], ids.device)
        given = cache.begin + self.time_table.weight[1:][steps]
        return self._scores(self._extend(self._embed(ids, cache.begin, steps), given, cache, window), given).unsqueeze(2)

    # ------------------------------------------------------------------------------------------------- released

    @torch.no_grad()
    def _load(self, path: LocalPath, name: str) -> None:
        state = read_state(path, "RAR", ("rar_*.bin", "*.bin", "*.safetensors"), KNOWN, "a generator of RAR")
        width, cells, codes = self.trunk.width, self.spec.positions, self.spec.vocab
        table = self.conditioner.parts[f"{name}_"].table.weight
        shapes = {
            "embeddings.weight": (codes + 1 + len(table), width), "cls_token": (1, 1, width), "pos_embed": (1, cells + 1024, width),
            "target_aware_pos_embed": (1, cells + 1024, width), "timesteps_embeddings": (1, cells + 100, width),
        }  # fmt: skip
        embeddings, first, place, target, time = take(state, shapes, path, "RAR")
        norms = [f"blocks.{i}.norm{n}.{t}" for i in range(self.trunk.depth) for n in (1, 2) for t in ("weight", "bias")]
        affine = take(state, dict.fromkeys(norms, (width,)), path, "RAR")
        sources = {f"modulation.{t}": (f"adaln_before_head.adaLN_modulation.1.{t}",) for t in ("weight", "bias")}
        sources |= {f"head.{t}": (f"lm_head.{t}",) for t in ("weight", "bias")}
        for i in range(self.trunk.depth):
            own = f"{self.TRUNK}.blocks.{i}"
            sources |= {f"{own}.{key}": tuple(f"blocks.{i}.{part}" for part in parts) for key, parts in NORM.items()}
            sources |= {f"{own}.{key}.{t}": (f"blocks.{i}.{part}.{t}",) for key, part in LAYERS.items() for t in ("weight", "bias")}
        fill(self, sources, state, path, "RAR")
        if table.is_meta:
            return
        self.token_table.weight.copy_(embeddings[:codes])
        table.copy_(embeddings[codes + 1 :])  # between the two, the id of a masked cell, which is not used
        self.first.copy_(first[0] + place[0, :1])
        self.place_table.weight.copy_(place[0, 1 : cells + 1] + target[0, 2 : cells + 2])
        self.time_table.weight.copy_(time[0, : cells + 1])
        for i, block in enumerate(self.trunk.blocks):
            weight1, bias1, weight2, bias2 = affine[4 * i : 4 * i + 4]
            _folded(block.modulation, 0, weight1, bias1)
            _folded(block.modulation, 3, weight2, bias2)
        shift_last = [tensor.roll(width, 0) for tensor in (self.modulation.weight, self.modulation.bias)]  # the release has the scale first
        self.modulation.weight.copy_(shift_last[0])
        self.modulation.bias.copy_(shift_last[1])


def _folded(layer: nn.Linear, part: int, weight: Tensor, bias: Tensor) -> None:
    """Makes (1 + scale) (weight n + bias) + shift of a norm's result n the same as (1 + scale) n + shift, in place.

    layer: makes shifts and scales, of which the parts from `part` on are shift and scale. weight, bias: float [D], of the norm.
    """
    width = len(weight)
    shift, scale = slice(part * width, (part + 1) * width), slice((part + 1) * width, (part + 2) * width)
    layer.weight[shift] += bias[:, None] * layer.weight[scale]
    layer.bias[shift] += bias * layer.bias[scale] + bias
    layer.weight[scale] *= weight[:, None]
    layer.bias[scale] = weight * layer.bias[scale] + weight - 1
