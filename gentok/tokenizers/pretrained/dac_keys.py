"""Weights of the Descript Audio Codec (arXiv 2306.06546) under the names that gentok's Codec has for them.

Two releases of the same networks are read, each as a file, or as the folder that holds it:
    descript       encoder.block.0.weight_g, quantizer.quantizers.0.in_proj.weight_v     weights.pth (weights_44khz_8kbps_0.0.1.pth, ...)
    transformers   encoder.conv1.weight, quantizer.quantizers.0.codebook.weight          model.safetensors

descript's are parted by weight norm into length and direction; those of transformers are whole, and are parted here: their length, and
themselves as the direction. Files of fewer levels than the codec's are refused; of more, the first are taken, which are a code by
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gentok.tokenizers.pretrained.released import put, read_state

__all__ = ["load_dac", "read_dac", "renamed"]

NAMES = ("model.safetensors", "*.pth", "pytorch_model.bin")
"""Files that are looked for in a folder."""
BOOK = re.compile(r"quantizer\.quantizers\.(\d+)\.(in_proj|out_proj|codebook)\.(\w+)")
DESCRIPT = re.compile(r"(encoder|decoder)\.(?:block|model)\.(\d+)(?:\.block\.(\d+))?(?:\.block\.(\d+))?\.(\w+)")
"""Part, layer, layer of a stage, layer of a residual unit, tensor."""
TRANSFORMERS = re.compile(r"(encoder|decoder)\.(?:block\.(\d+)\.)?(?:res_unit(\d)\.)?(conv1|conv2|conv_t1|snake1|snake2)\.(\w+)")
"""Part, stage, residual unit, layer, tensor."""
STAGE = {"encoder": {"unit": 0, "snake1": 3, "conv1": 4}, "decoder": {"snake1": 0, "conv_t1": 1, "unit": 2}}
"""Where the layers of a stage stand here; units from "unit" on."""
UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
"""Where the layers of a residual unit stand here."""
NORMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def read_dac(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the folder that holds it, under the names there. Raises FileNotFoundError or ValueError with a line."""
    return read_state(path, "DAC", NAMES, BOOK.fullmatch, "descript or transformers")


def _place(key: str, stages: int) -> str | None:
    """The name here of a network's tensor, None where it is no network's. stages: of either network."""
    if named := DESCRIPT.fullmatch(key):
        part, layer, inner, innermost, last = named.groups()
        return ".".join(filter(None, (part, "layers", layer, inner, innermost and f"layers.{innermost}", last)))
    if named := TRANSFORMERS.fullmatch(key):
        part, stage, unit, layer, last = named.groups()
        if stage is None:
            return f"{part}.layers.{ {'conv1': 0, 'snake1': stages + 1, 'conv2': stages + 2}[layer]}.{last}"
        at = f"{STAGE[part]['unit'] + int(unit) - 1}.layers.{UNIT[layer]}" if unit else STAGE[part][layer]
        return f"{part}.layers.{int(stage) + 1}.{at}.{last}"
    return None


def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The same tensors under the names of a Codec of DAC's networks and ProjectedResidual(FactorizedVQ), of `levels` levels."""
    stages = 1 + max((int(named[2] or 0) for named in map(TRANSFORMERS.fullmatch, state) if named), default=0)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if book := BOOK.fullmatch(key):
            level, what, last = int(book[1]), book[2], book[3]
            if level >= levels:
                continue
            at = f"codebook.books.{level}."
            if what == "codebook":
                # usage only tells dead rows, of which the release knows nothing
                out |= {at + "weight": value, at + "usage": value.new_zeros(len(value)), at + "started": torch.tensor(False)}
                continue
            name, value = f"{at}project_{what[:-5]}.{last}", value.squeeze(2) if value.dim() == 3 else value  # kernels of 1
        elif (name := _place(key, stages)) is None:
            continue
        head, _, last = name.rpartition(".")
        if last == "weight":
            length = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            out |= {f"{head}.{NORMED['weight_g']}": length, f"{head}.{NORMED['weight_v']}": value}
        else:
            out[f"{head}.{NORMED.get(last, last)}"] = value
    return out


def load_dac(codec: nn.Module, path: str | Path) -> None:
    """Puts the weights at `path` into a codec. Raises FileNotFoundError, or ValueError with a line where they are of another model."""
    put(codec, renamed(read_dac(path), codec.spec.levels), path, "DAC")
