"""EnCodec (Défossez et al., arXiv 2210.13438) as gentok's own Codec, with released weights or to be trained.

The networks and the residual codebook are gentok's; no other library is needed. Three releases of the same networks are read:

    the `encodec` package   encoder.model.0.conv.conv.weight_g, quantizer.vq.layers.0._codebook.embed      encodec_24khz-d7cc33bc.th
    audiocraft              the same, in a dict under best_state                                           compression_state_dict.bin
    transformers            encoder.layers.0.conv.parametrizations.weight.original0, quantizer.layers.0.codebook.embed

Of the quantizer the rows and their usage are taken; sums are rows * usage, so that further training starts from the rows as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gentok.tokenizers.pretrained.released import NORMED, ReleasedCodec

__all__ = ["EnCodec"]

QUANTIZER = re.compile(r"quantizer\.(?:vq\.)?layers\.(\d+)\.(?:_codebook|codebook)\.(embed|cluster_size|embed_avg|inited)")
"""Level, tensor."""
NETWORK = re.compile(r"(encoder|decoder)\.(?:model|layers)\.(.+)")


class EnCodec(ReleasedCodec, id="tokenizer/encodec"):
    """A Codec of SEANet and Residual(VQ, update=ema)."""

    model = "EnCodec"
    files = ("*.th", "compression_state_dict.bin", "model.safetensors", "pytorch_model.bin")
    known = QUANTIZER
    released_by = "encodec, audiocraft or transformers"

    @classmethod
    def check_state(cls, state: Mapping[str, Tensor], path: str | Path) -> None:
        if any(".norm." in key for key in state):
            raise ValueError(
                f"{path} is EnCodec's model for 48 kHz: it sends a scale beside the codes of every second, and tokens hold nothing but "
                "codes; use the one for 24 or 32 kHz"
            )

    @staticmethod
    def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            if quantizer := QUANTIZER.fullmatch(key):
                level, tensor = int(quantizer[1]), quantizer[2]
                if level < levels and tensor == "embed":
                    at = f"codebook.books.{level}."
                    usage = state.get(key[: -len("embed")] + "cluster_size")
                    usage = value.new_ones(len(value)) if usage is None or not usage.any() else usage  # where a release has none
                    out |= {at + "weight": value, at + "usage": usage, at + "sums": value * usage[:, None]}
                    out[at + "started"] = torch.tensor(True)
            elif network := NETWORK.fullmatch(key):
                name = network[2].replace("convtr.convtr.", "conv.").replace("conv.conv.", "conv.")
                head, _, last = name.rpartition(".")
                out[f"{network[1]}.layers.{head}.{NORMED.get(last, last)}"] = value
            else:
                out[key] = value  # of another model: refused by its name
        return out
