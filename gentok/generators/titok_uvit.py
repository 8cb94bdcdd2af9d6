"""TiTok's generator of S-128 (Yu et al., arXiv 2406.07550), a U-ViT (Bao et al., arXiv 2209.12152), computed as released.

It is generator=titok with the blocks of ViT (LayerNorm before both branches, biases) and a skip from each block of the first half to its
counterpart in the second. Read is generator_titok_s128.bin of bytedance/1d-tokenizer (Apache-2.0), over the codes of tokenizer=titok
tokenizer.tokens=128 tokenizer.encoder=S tokenizer.decoder=S. The release draws in 64 steps with guidance = 6.9 and
guidance_schedule = cosine:3.

Deviations: queries, keys and values have biases, which are 0 in the release and are trained here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from torch import Tensor

from gentok.generators.titok import TiTokMasked
from gentok.interfaces import LocalPath
from gentok.nn.released import take
from gentok.settings import PositiveInt
from gentok.types import ConditionSpec, TokenSpec

__all__ = ["TiTokUViT"]

BLOCK = {"norm1": "norm1", "norm2": "norm2", "attention.out": "attn.proj", "mlp.up": "mlp.fc1", "mlp.out": "mlp.fc2"}
"""A block's layers and their released names."""


class TiTokUViT(TiTokMasked, id="generator/titok_uvit"):
    """Predicts all masked tokens of a line from the visible ones and a class.

    Args:
        spec: the tokens: one code each, on a line.
        condition_spec: what they are conditioned on: one class.
        width: channels.
        depth: blocks, an odd number: one more than the release's number of layers.
        hidden: width of the feed-forward part.
        settings: as in TiTokMasked.

    Raises:
        ValueError: the tokens or the condition are others, or the weights are of another model.
        FileNotFoundError: there are no weights.
    """

    network = {"norm": "layer", "bias": True, "eps": 1e-5, "skips": True}
    known = re.compile(r"in_blocks\.0\.norm1\.weight")
    of = "S-128"

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        *,
        width: PositiveInt = 1024,
        depth: PositiveInt = 21,
        hidden: PositiveInt = 4096,
        **settings: Annotated[Any, TiTokMasked],
    ):
        super().__init__(spec, condition_spec, width=width, depth=depth, hidden=hidden, **settings)

    def _taken(self, state: dict[str, Tensor], path: LocalPath, ids: int) -> tuple[Tensor, Tensor]:
        width = self.transformer.width
        shapes = {"embeddings.weight": (ids, width), "pos_embed": (1, self.spec.positions + 1, width)}
        embeddings, place = take(state, shapes, path, "TiTok generator")
        return embeddings, place[0]

    def _sources(self) -> dict[str, tuple[str, ...]]:
        half = self.transformer.depth // 2
        names = [*(f"in_blocks.{i}" for i in range(half)), "mid_block", *(f"out_blocks.{i}" for i in range(half))]
        layers = {"head": "lm_head", "transformer.norm": "norm"}
        layers |= {f"transformer.skips.{i}": f"out_blocks.{i}.skip_linear" for i in range(half)}
        layers |= {f"transformer.blocks.{i}.{own}": f"{name}.{part}" for i, name in enumerate(names) for own, part in BLOCK.items()}
        sources = {f"{own}.{t}": (f"{part}.{t}",) for own, part in layers.items() for t in ("weight", "bias")}
        return sources | {f"transformer.blocks.{i}.attention.qkv.weight": (f"{name}.attn.qkv.weight",) for i, name in enumerate(names)}
