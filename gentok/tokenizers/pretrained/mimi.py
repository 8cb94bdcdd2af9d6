"""Mimi ("Moshi", arXiv 2410.00037, section 3.3) as gentok's own Codec, with released weights or to be trained.

The networks and the codebook are gentok's; no other library is needed. With a teacher, such as WavLM (gentok/nn/audio_map.py), the
semantic level is distilled from it in training (gentok/tokenizers/distillation.py). Adversaries belong to the training loop.

Read are the files of transformers (model.safetensors of kyutai/mimi), in its older naming and its newer one. moshi's own files have other
names and are not read. Of the quantizer, rows are sums / usage; both are taken, so further training goes on from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from gentok.interfaces import FeatureNetwork
from gentok.settings import NonNegativeFloat, PositiveInt
from gentok.tokenizers.distillation import Distillation
from gentok.tokenizers.pretrained.released import ReleasedCodec
from gentok.types import Quantized

__all__ = ["Mimi"]

PARTS = {"encoder_transformer": "encoder", "decoder_transformer": "decoder", "downsample": "encoder", "upsample": "decoder"}
"""Parts that the older naming has beside the encoder and the decoder, and where they belong."""
SEANET = re.compile(r"(encoder|decoder)\.layers\.(.+)")
HALF = re.compile(r"(encoder|decoder)\.(encoder_seanet|decoder_seanet|encoder_transformer|decoder_transformer|downsample|upsample)\.(.+)")
BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
QUANTIZER = re.compile(r"quantizer\.(semantic|acoustic)_residual_vector_quantizer\.(?:(input_proj|output_proj)\.weight|"
                  r"layers\.(\d+)\.codebook\.(embed_sum|cluster_usage|initialized))")  # fmt: skip
IN_BLOCK = {
    "self_attn.o_proj.weight": "attention.out.weight",
    "mlp.fc1.weight": "mlp.0.weight",
    "mlp.fc2.weight": "mlp.2.weight",
    "self_attn_layer_scale.scale": "scale1",
    "mlp_layer_scale.scale": "scale2",
    "input_layernorm.weight": "norm1.weight",
    "input_layernorm.bias": "norm1.bias",
    "post_attention_layernorm.weight": "norm2.weight",
    "post_attention_layernorm.bias": "norm2.bias",
}
QKV = "qkv"
"""The order in which one map holds queries, keys and values."""
EPSILON = 1e-5
"""Below which a usage is not divided by, in the library."""


class Mimi(ReleasedCodec, id="tokenizer/mimi"):
    """A Codec of Mimi's networks and SplitRVQ(Residual(VQ), Residual(VQ))."""

    decode_only = ("decoder", "distillation")
    model = "Mimi"
    files = ("model.safetensors",)
    known = QUANTIZER
    released_by = "transformers' MimiModel"

    def __init__(
        self,
        *,
        teacher: FeatureNetwork | None = None,
        teacher_width: PositiveInt | None = None,
        distill: NonNegativeFloat = 1.0,
        **codec: Annotated[Any, ReleasedCodec],
    ):
        """
        Args:
            teacher: a frozen speech network, in training alone.
            teacher_width: its channels; null: no distillation.
            distill: weight of the distillation.
            codec: as of ReleasedCodec.

        Raises:
            ValueError: there is a teacher but no width, or the codebook has no semantic branch to distil.
        """
        super().__init__(**codec)
        if teacher is not None and teacher_width is None:
            raise ValueError(f"a teacher needs the number of its channels, for its head: set teacher_width={teacher.width}")
        self.distillation = None
        if teacher_width is not None:
            if not hasattr(self.codebook, "semantic"):  # SplitRVQ's, or of a codebook of your own
                kind = type(self.codebook).__name__
                raise ValueError(f"{kind} has no semantic branch to distil: take codebook=split_rvq, or teacher_width=null")
            self.distillation = Distillation(self.codebook.width, teacher_width, self.spec.grid.rate_hz, distill, teacher)

    def further_losses(self, quantized: Quantized, media: Tensor, lengths: Tensor | None, frames: Tensor | None) -> dict[str, Tensor]:
        if self.distillation is None:
            return {}
        return self.distillation(quantized.branches["semantic"], media, lengths, frames)

    @staticmethod
    def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        semantic = len({m[3] for m in map(QUANTIZER.fullmatch, state) if m and m[1] == "semantic" and m[3]})
        for key, value in state.items():
            if quantizer := QUANTIZER.fullmatch(key):
                branch, projection, level, tensor = quantizer.groups()
                if projection:
                    out[f"codebook.{branch}.project_{'in' if projection == 'input_proj' else 'out'}.weight"] = value.squeeze(2)
                elif tensor == "embed_sum" and (branch == "semantic" or int(level) < levels - semantic):
                    usage = state[key.removesuffix(tensor) + "cluster_usage"]
                    at = f"codebook.{branch}.books.{level}."
                    rows = rows_of(value, usage)
                    out |= {at + "weight": rows, at + "usage": usage, at + "sums": value, at + "started": torch.tensor(True)}
                continue
            head, _, rest = key.partition(".")
            if head in PARTS:
                key = f"{PARTS[head]}.{key}"
            elif old := SEANET.fullmatch(key):
                key = f"{old[1]}.{old[1]}_seanet.layers.{old[2]}"
            half = HALF.fullmatch(key)
            out[_in_half(*half.groups()) if half else key] = value
        for key in [key for key in out if key.endswith("self_attn.q_proj.weight")]:  # three maps there, one here
            at = key.removesuffix("self_attn.q_proj.weight")
            out[at + "attention.qkv.weight"] = torch.cat([out.pop(f"{at}self_attn.{name}_proj.weight") for name in QKV])
        return out


def rows_of(sums: Tensor, usage: Tensor) -> Tensor:
    """sums float [V, d], usage float [V] -> the rows, as the library has them."""
    return sums / usage.clamp(min=EPSILON)[:, None]


def _in_half(part: str, what: str, rest: str) -> str:
    """The name here of a tensor of a half's part."""
    if what.endswith("seanet"):
        return f"{part}.seanet.layers.{rest.removeprefix('layers.')}"
    if what.endswith("sample"):
        return f"{part}.{'down' if what == 'downsample' else 'up'}.conv.{rest.removeprefix('conv.')}"
    number, inside = BLOCK.fullmatch(rest).groups()
    return f"{part}.transformer.blocks.{number}.{IN_BLOCK.get(inside, inside)}"
