"""Weights of SNAC (arXiv 2410.14411) under the names that gentok's Codec has for them: pytorch_model.bin of hubertsiuzdak/snac_24khz.

The models of 32 and 44.1 kHz have local attention, which gentok's networks have not: their files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gentok.tokenizers.pretrained.released import put, read_state

__all__ = ["load_snac", "read_snac", "renamed"]

BOOK = re.compile(r"quantizer\.quantizers\.(\d+)\.(in_proj|out_proj|codebook)\.(.+)")
LAYER = re.compile(r"(encoder\.block|decoder\.model)\.(\d+)(?:\.block\.(\d+))?(?:\.block\.(\d+))?\.(.+)")
"""Network, layer, layer of a stage, layer of a residual unit, tensor."""


def read_snac(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the folder that holds it, under the names there. Raises FileNotFoundError or ValueError with a line."""
    return read_state(path, "SNAC", ("pytorch_model.bin", "model.safetensors"), BOOK.fullmatch, "snac")


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of a Codec of SNAC's networks and StridedResidual(FactorizedVQ). Decoder stages are not nested."""
    stages = {int(m[2]) for m in map(LAYER.fullmatch, state) if m and m[1] == "decoder.model" and m[3]}
    inside = 1 + max((int(m[3]) for m in map(LAYER.fullmatch, state) if m and m[1] == "decoder.model" and m[3]), default=0)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if book := BOOK.fullmatch(key):
            at, what, last = f"codebook.books.{book[1]}.", book[2], book[3]
            if what == "codebook":  # usage only tells dead rows, of which the release knows nothing
                out |= {at + "weight": value, at + "usage": value.new_zeros(len(value)), at + "started": torch.tensor(False)}
            else:
                out[f"{at}project_{what[:-5]}.{last}"] = value.squeeze(2) if value.dim() == 3 else value  # kernels of 1
        elif named := LAYER.fullmatch(key):
            network, layer, inner, innermost, last = named.groups()
            last = last.replace("linear.", "scale.")
            if network == "decoder.model":
                before = sum(stage < int(layer) for stage in stages)
                layer, inner = str(int(layer) + before * (inside - 1) + int(inner or 0)), None
            out[".".join(filter(None, (network[:7], "layers", layer, inner, innermost and f"layers.{innermost}", last)))] = value
    return out


def load_snac(codec: nn.Module, path: str | Path) -> None:
    """Puts the weights at `path` into a codec. Raises FileNotFoundError, or ValueError with a line where they are of another model."""
    put(codec, renamed(read_snac(path)), path, "SNAC")
