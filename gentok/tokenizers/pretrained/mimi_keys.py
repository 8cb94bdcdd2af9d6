"""Weights of Mimi (arXiv 2410.00037) under the names that gentok's Codec has for them.

Read are the files of transformers (model.safetensors of kyutai/mimi), in its older naming and its newer one, each as a file, or as the
folder that holds it. moshi's own files have other names and are not read.

Of the quantizer, rows are sums / usage; both are taken, so further training goes on from them. Files of fewer levels than the codec's are
refused; of more, the first are taken, which are a code by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gentok.tokenizers.pretrained.released import put, read_state

__all__ = ["load_mimi", "read_mimi", "renamed"]

PARTS = {"encoder_transformer": "encoder", "decoder_transformer": "decoder", "downsample": "encoder", "upsample": "decoder"}
"""Parts that the older naming has beside the encoder and the decoder, and where they belong."""
SEANET = re.compile(r"(encoder|decoder)\.layers\.(.+)")
HALF = re.compile(r"(encoder|decoder)\.(encoder_seanet|decoder_seanet|encoder_transformer|decoder_transformer|downsample|upsample)\.(.+)")
BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
BOOK = re.compile(r"quantizer\.(semantic|acoustic)_residual_vector_quantizer\.(?:(input_proj|output_proj)\.weight|"
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
EPSILON = 1e-5
"""Below which a usage is not divided by, in the library."""


def read_mimi(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the folder that holds it, under the names there. Raises FileNotFoundError or ValueError with a line."""
    return read_state(path, "Mimi", ("model.safetensors",), BOOK.fullmatch, "transformers' MimiModel")


def _in_half(part: str, what: str, rest: str) -> str:
    """The name here of a tensor of a half's part."""
    if what.endswith("seanet"):
        return f"{part}.seanet.layers.{rest.removeprefix('layers.')}"
    if what.endswith("sample"):
        return f"{part}.{'down' if what == 'downsample' else 'up'}.conv.{rest.removeprefix('conv.')}"
    number, inside = BLOCK.fullmatch(rest).groups()
    return f"{part}.transformer.blocks.{number}.{IN_BLOCK.get(inside, inside)}"


def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The same tensors under the names of a Codec of Mimi's networks and SplitRVQ of two ResidualCodebook(VQ), of `levels` levels."""
    out: dict[str, Tensor] = {}
    semantic = len({book[3] for book in map(BOOK.fullmatch, state) if book and book[1] == "semantic" and book[3]})
    for key, value in state.items():
        if book := BOOK.fullmatch(key):
            branch, projection, level, what = book.groups()
            if projection:
                out[f"codebook.{branch}.project_{'in' if projection == 'input_proj' else 'out'}.weight"] = value.squeeze(2)
            elif what == "embed_sum" and (branch == "semantic" or int(level) < levels - semantic):
                usage = state[key.removesuffix(what) + "cluster_usage"]
                at = f"codebook.{branch}.books.{level}."
                rows = value / usage.clamp(min=EPSILON)[:, None]
                out |= {at + "weight": rows, at + "usage": usage, at + "sums": value, at + "started": torch.tensor(True)}
            continue
        head, _, rest = key.partition(".")
        if head in PARTS:
            key = f"{PARTS[head]}.{key}"
        elif old := SEANET.fullmatch(key):
            key = f"{old[1]}.{old[1]}_seanet.layers.{old[2]}"
        if half := HALF.fullmatch(key):
            out[_in_half(*half.groups())] = value
    for key in [key for key in out if key.endswith("self_attn.q_proj.weight")]:  # three maps there, one here
        at = key.removesuffix("self_attn.q_proj.weight")
        out[at + "attention.qkv.weight"] = torch.cat([out.pop(f"{at}self_attn.{name}_proj.weight") for name in "qkv"])
    return out


def load_mimi(codec: nn.Module, path: str | Path) -> None:
    """Puts the weights at `path` into a codec. Raises FileNotFoundError, or ValueError with a line where they are of another model."""
    put(codec, renamed(read_mimi(path), codec.spec.levels), path, "Mimi")
