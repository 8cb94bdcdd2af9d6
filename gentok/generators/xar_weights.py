"""Released weights of xAR (Ren et al., arXiv 2502.20388), put into gentok's network in the form of the release.

Read are xAR-B.pth, xAR-L.pth and xAR-H.pth of OliverRensu/xAR, which gives no licence, over latents of tokenizer=mar_kl in cells of 8 x 8.
Their rotary pairs are neighbours (2i, 2i + 1), here they are (i, i + d/2), and the parts of a block's modulation lie in another order, so
that rows of these weights change places on loading.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from gentok.interfaces import LocalPath
from gentok.nn.entity_transformer import EntityTransformer
from gentok.nn.released import fill, read_state

__all__ = ["read_xar"]

KNOWN = re.compile(r"decoder_pos_embed_learned")
TABLES = re.compile(r"mask|(en|de)coder_blocks\.\d+\.attn\.rope\.freqs(_cos|_sin)?")
"""Constants that the release stores, and that are computed here."""
LAYERS = {
    "stem": "z_proj", "time.first": "time_embed.mlp.0", "time.second": "time_embed.mlp.2", "middle": "decoder_embed", "head": "pred",
}  # fmt: skip
NORMS = {"norm_stem": "z_proj_ln", "norm_middle": "encoder_norm", "norm": "decoder_norm"}
BLOCK = {
    "attention.qkv": ("attn.qkv",), "attention.out": ("attn.proj",), "mlp.up": ("mlp.fc1_g", "mlp.fc1_x"), "mlp.out": ("mlp.fc2",),
    "modulation": ("ada_lin.1",),
}  # fmt: skip
"""A block's layers and their released names."""
ORDER = (4, 2, 0, 5, 3, 1)
"""Where shift, scale and gate of attention and feed-forward part lie in the release's modulation."""


def read_xar(path: LocalPath, network: EntityTransformer, conditioner: nn.Module, name: str) -> None:
    """Puts a released file into a network.

    Args:
        path: the file, or the folder that holds it.
        network: in the form of the release.
        conditioner: with a table of the classes.
        name: of the class among the conditions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another model.
    """
    state = read_state(path, "xAR", ("xAR-*.pth", "*.pth", "*.safetensors"), KNOWN, "a generator of xAR")
    sources = {f"network.{own}.weight": (f"{released}.weight",) for own, released in NORMS.items()}
    for own, released in LAYERS.items():
        sources |= {f"network.{own}.{t}": (f"{released}.{t}",) for t in ("weight", "bias")}
    sources[f"conditioner.parts.{name}_.table.weight"] = ("class_emb.weight",)
    half = len(network.blocks) // 2
    for i, side in enumerate(("encoder", "decoder")):
        sources[f"network.places.{i}.weight"] = (f"{side}_pos_embed_learned",)
    for i in range(len(network.blocks)):
        there = f"encoder_blocks.{i}" if i < half else f"decoder_blocks.{i - half}"
        for own, parts in BLOCK.items():
            sources |= {f"network.blocks.{i}.{own}.{t}": tuple(f"{there}.{part}.{t}" for part in parts) for t in ("weight", "bias")}
    state = {key: value.squeeze(0) if "pos_embed" in key else value for key, value in state.items() if not TABLES.fullmatch(key)}
    fill(nn.ModuleDict({"network": network, "conditioner": conditioner}), sources, state, path, "xAR")
    if not network.head.weight.is_meta:
        _rearrange(network)


@torch.no_grad()
def _rearrange(network: EntityTransformer) -> None:
    for block in network.blocks:
        attention = block.attention
        for tensor in (attention.qkv.weight, attention.qkv.bias):
            pairs = tensor.unflatten(0, (3, attention.heads, attention.head_width // 2, 2))
            pairs[:2] = pairs[:2].transpose(2, 3).reshape(pairs[:2].shape)
        for tensor in (block.modulation.weight, block.modulation.bias):
            parts = tensor.chunk(6)
            tensor.copy_(torch.cat([parts[i] for i in ORDER]))
