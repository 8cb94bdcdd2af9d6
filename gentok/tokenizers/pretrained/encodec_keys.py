"""Weights of EnCodec (arXiv 2210.13438) under the names that gentok's Codec has for them.

Three releases of the same networks are read, each as a file, or as the folder that holds it:
    the `encodec` package   encoder.model.0.conv.conv.weight_g, quantizer.vq.layers.0._codebook.embed      encodec_24khz-d7cc33bc.th
    audiocraft              the same, in a dict under best_state                                           compression_state_dict.bin
    transformers            encoder.layers.0.conv.parametrizations.weight.original0, quantizer.layers.0.codebook.embed

Of the quantizer the rows and their usage are taken; sums are rows * usage, so that further training starts from the rows as they are.
Files of fewer levels than the codec's are refused; of more, the first are taken, which are a code by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gentok.tokenizers.pretrained.released import put, read_state

__all__ = ["load_encodec", "read_encodec", "renamed"]

NAMES = ("*.th", "compression_state_dict.bin", "model.safetensors", "pytorch_model.bin")
"""Files that are looked for in a folder."""
BOOK = re.compile(r"quantizer\.(?:vq\.)?layers\.(\d+)\.(?:_codebook|codebook)\.(embed|cluster_size|embed_avg|inited)")
NETWORK = re.compile(r"(encoder|decoder)\.(?:model|layers)\.(.+)")
NORMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def read_encodec(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the folder that holds it, under the names there. Raises FileNotFoundError or ValueError with a line."""
    state = read_state(path, "EnCodec", NAMES, BOOK.fullmatch, "encodec, audiocraft or transformers")
    if any(".norm." in key for key in state):
        raise ValueError(
            f"{path} is EnCodec's model for 48 kHz: it sends a scale beside the codes of every second, and tokens hold nothing but codes; "
            "use the one for 24 or 32 kHz"
        )
    return state


def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The same tensors under the names of a Codec of SEANet and ResidualCodebook(VQ), of `levels` levels; the rest is left out."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if book := BOOK.fullmatch(key):
            level, what = int(book[1]), book[2]
            if level >= levels:
                continue
            at = f"codebook.books.{level}."
            if what == "embed":
                usage = state.get(key[: -len("embed")] + "cluster_size")
                usage = value.new_ones(len(value)) if usage is None or not usage.any() else usage  # where a release knows of none
                out |= {at + "weight": value, at + "usage": usage, at + "sums": value * usage[:, None]}
                out[at + "started"] = torch.tensor(True)
        elif network := NETWORK.fullmatch(key):
            name = network[2].replace("convtr.convtr.", "conv.").replace("conv.conv.", "conv.")
            head, _, last = name.rpartition(".")
            out[f"{network[1]}.layers.{head}.{NORMED.get(last, last)}"] = value
    return out


def load_encodec(codec: nn.Module, path: str | Path) -> None:
    """Puts the weights at `path` into a codec. Raises FileNotFoundError, or ValueError with a line where they are of another model."""
    put(codec, renamed(read_encodec(path), codec.spec.levels), path, "EnCodec")
