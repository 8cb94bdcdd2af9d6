"""LlamaGen (Sun et al., arXiv 2406.06525), computed as released, so that the released weights fit.

    h_0 = transformer(class),   h_i = transformer(class, codes of the cells before i),   p(code of cell i) = softmax(head h_i)

The class stands in the place of `begin`; the last row of its table is the null, which guidance needs. Blocks are
those of LLaMA: RMSNorm (eps 1e-5), attention without QK-norm, SwiGLU. Queries and keys are both rotated by the row
and column of the cell that the step holds. The step of the class is rotated by zeros, as in the release (its table
has cosine and sine 0 there): its key scores 0 with every query.

Read are the class-conditional files of FoundationVision/LlamaGen (MIT licence), c2i_B_256.pt and the like. Their
rotary pairs are neighbours (2i, 2i + 1); here they are (i, i + d/2), so that rows of the query and key weights change
places on loading.

Deviations: new weights are initialised like those of gentok's other transformers. `autoregressive` is the same idea
for every layout and condition.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn

from gentok.generators.class_raster import ClassRaster, check_class, check_raster
from gentok.interfaces import LocalPath
from gentok.nn.cell_positions import held_cells
from gentok.nn.conditioning import Conditioned
from gentok.nn.constants import Constants
from gentok.nn.kv_cache import KVCache
from gentok.nn.linear import Linear, activations
from gentok.nn.norm import RMSNorm
from gentok.nn.released import fill, read_state
from gentok.nn.rope import Rotation
from gentok.nn.token_transformer import TransformerSettings, attend, initialise_parts
from gentok.rng import RowRNG
from gentok.settings import Count, Fraction, FractionBelow1, PositiveInt
from gentok.types import Condition, ConditionSpec, TokenSpec

__all__ = ["SIZES", "LlamaGen"]

SIZES = {
    "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1280, 36, 20), "XXL": (1536, 48, 24), "XXXL": (2560, 48, 40), "3B": (3200, 24, 32),
}  # fmt: skip
"""Width, depth and heads of the release."""
TABLE = re.compile(r"tok_embeddings\.weight")
BLOCK = {
    "norm1.weight": ("attention_norm.weight",), "attention.qkv.weight": ("attention.wqkv.weight",),
    "attention.out.weight": ("attention.wo.weight",), "norm2.weight": ("ffn_norm.weight",),
    "mlp.up.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"), "mlp.out.weight": ("feed_forward.w2.weight",),
}  # fmt: skip
"""A block's tensors and their released names."""


class LlamaGen(ClassRaster, id="generator/llamagen"):
    """A causal transformer over the cells of a raster, conditioned on a class.

    Args:
        spec: the tokens: one code per cell.
        condition_spec: what they are conditioned on: one class.
        weights: a released file, or the folder that holds it; None: random weights.
        size: of the release: B, L, XL, XXL, XXXL or 3B.
        width: channels; None: as `size` says.
        depth: blocks; None: as `size` says.
        heads: of attention; None: as `size` says.
        hidden: width of the feed-forward part; None: 8/3 of the width, up to the next multiple of 256.
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
        size: Literal["B", "L", "XL", "XXL", "XXXL", "3B"] = "B",
        width: PositiveInt | None = None,
        depth: Count | None = None,
        heads: PositiveInt | None = None,
        hidden: PositiveInt | None = None,
        condition_dropout: Fraction = 0.1,
        dropout: FractionBelow1 = 0.1,
    ):
        check_raster("llamagen", spec)
        name = check_class("llamagen", condition_spec, "autoregressive")
        width, depth, heads = (own or released for own, released in zip((width, depth, heads), SIZES[size]))
        settings = TransformerSettings(
            width, depth, heads, hidden or -(-int(8 * width / 3) // 256) * 256,
            condition_dropout=condition_dropout, qk_norm=False, dropout=dropout,
        )  # fmt: skip
        super().__init__(spec, condition_spec, settings, "raster", 0.0, False)
        for part in self.trunk.modules():
            if isinstance(part, RMSNorm):
                part.eps = 1e-5
        self.token_table = nn.Embedding(spec.vocab, width)
        self.head = Linear(width, spec.vocab)
        initialise_parts(self.token_table)
        nn.init.zeros_(self.head.weight)
        with torch.device("cpu"):
            cos, sin = held_cells(spec, self.trunk.head_width)
        self._tables = Constants(cos=cos, sin=sin)
        if weights is not None:
            self._load(weights, name)
            self.needs_training = False

    @torch.no_grad()
    def _load(self, path: LocalPath, name: str) -> None:
        state = read_state(path, "LlamaGen", ("c2i_*.pt", "*.safetensors"), TABLE, "a class-conditional generator of LlamaGen")
        if any(key.startswith("cls_embedding.cap_proj.") for key in state):
            raise ValueError(f"{path} is a text-conditional LlamaGen; class-conditional ones are read (c2i_*.pt)")
        sources = {
            f"conditioner.parts.{name}_.table.weight": ("cls_embedding.embedding_table.weight",),
            "token_table.weight": ("tok_embeddings.weight",), "head.weight": ("output.weight",),
            f"{self.TRUNK}.norm.weight": ("norm.weight",),
        }  # fmt: skip
        for i in range(self.trunk.depth):
            for own, released in BLOCK.items():
                sources[f"{self.TRUNK}.blocks.{i}.{own}"] = tuple(f"layers.{i}.{key}" for key in released)
        fill(self, sources, state, path, "LlamaGen", ("freqs_cis",))
        for block in self.trunk.blocks:
            weight = block.attention.qkv.weight
            if not weight.is_meta:
                pairs = weight.unflatten(0, (3, self.trunk.heads, self.trunk.head_width // 2, 2))[:2]
                weight[: 2 * self.trunk.width] = pairs.transpose(2, 3).flatten(0, 3)

    # ------------------------------------------------------------------------------------------------ network

    def _rotation(self, device: torch.device, steps: Tensor | slice) -> Rotation:
        tables = self._tables.on(device)
        return tables.cos[steps], tables.sin[steps]

    def _begin(self, condition: Condition, batch: int) -> Tensor:
        """float [B, 1, D]: the class, which fed step 0 reads."""
        begin = self.conditioner(condition, batch).prefix
        assert begin is not None
        return begin

    def _embed(self, ids: Tensor, begin: Tensor) -> Tensor:
        """ids int64 [B, S, 1], begin float [B, 1, D] -> [B, S, D]; a cell without a code reads as zeros."""
        x = self.token_table(ids[..., 0].clamp(0, self.spec.vocab - 1)).masked_fill(ids < 0, 0.0)
        return torch.where(ids == self.spec.vocab, begin.to(x.dtype), x)

    def _hidden(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        """codes int64 [B, 1, N] -> [B, N, D]: the state from which each cell is predicted."""
        self.check_shape(codes)
        x = self._embed(self.feed(codes), self._begin(condition, len(codes)))
        return attend(self.trunk, x, Conditioned(), self._rotation(x.device, slice(None)), slice(None), rate=self.dropout, rng=rng)

    def _scores(self, hidden: Tensor) -> Tensor:
        return self.head(activations(hidden))

    def _predict(self, codes: Tensor, condition: Condition, rng: RowRNG | None) -> Tensor:
        return self._scores(self._hidden(codes, condition, rng))

    # ------------------------------------------------------------------------------------------------- Causal

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> KVCache:
        """As Causal.init_cache."""
        cache = self.trunk.init_cache(batch, capacity)
        cache.begin = self._begin(condition, batch)
        self._keep_tables(cache)
        return cache

    def logits(self, ids: Tensor, cache: KVCache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        """As Causal.logits; what is predicted at fed steps beyond the layout's end is unspecified."""
        window = cache.window(at, ids.shape[1], parents)
        steps = self._fed_steps(window, cache, at, ids.shape[1], ids.device)
        if cache.rotation is None or torch.is_grad_enabled():
            rope = self._rotation(ids.device, steps)
        else:
            rope = cache.rotation[0][steps], cache.rotation[1][steps]
        return self._scores(self.trunk.extend(self._embed(ids, cache.begin), rope, cache, window)).unsqueeze(2)
