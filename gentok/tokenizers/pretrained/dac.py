"""The Descript Audio Codec (Kumar et al., arXiv 2306.06546) as gentok's own Codec, with released weights or to be trained.

The networks and the codebook are gentok's; no other library is needed. Two releases of the same networks are read:

    descript       encoder.block.0.weight_g, quantizer.quantizers.0.in_proj.weight_v     weights.pth (weights_44khz_8kbps_0.0.1.pth, ...)
    transformers   encoder.conv1.weight, quantizer.quantizers.0.codebook.weight          model.safetensors

descript's weights are parted by weight norm into length and direction; those of transformers are whole, and are parted here: their length,
and themselves as the direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gentok.tokenizers.pretrained.released import NORMED, ReleasedCodec, factorized

__all__ = ["DAC"]

QUANTIZER = re.compile(r"quantizer\.quantizers\.(\d+)\.(in_proj|out_proj|codebook)\.(\w+)")
DESCRIPT = re.compile(r"(encoder|decoder)\.(?:block|model)\.(\d+)(?:\.block\.(\d+))?(?:\.block\.(\d+))?\.(\w+)")
"""Part, layer, layer of a stage, layer of a residual unit, tensor."""
TRANSFORMERS = re.compile(r"(encoder|decoder)\.(?:block\.(\d+)\.)?(?:res_unit(\d)\.)?(conv1|conv2|conv_t1|snake1|snake2)\.(\w+)")
"""Part, stage, residual unit, layer, tensor."""
STAGE = {"encoder": {"unit": 0, "snake1": 3, "conv1": 4}, "decoder": {"snake1": 0, "conv_t1": 1, "unit": 2}}
"""Where the layers of a stage stand here; units from "unit" on."""
UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
"""Where the layers of a residual unit stand here."""


class DAC(ReleasedCodec, id="tokenizer/dac"):
    """A Codec of DAC's networks and ProjectedResidual(FactorizedVQ)."""

    model = "DAC"
    files = ("model.safetensors", "*.pth", "pytorch_model.bin")
    known = QUANTIZER
    released_by = "descript or transformers"

    @staticmethod
    def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
        stages = 1 + max((int(named[2] or 0) for named in map(TRANSFORMERS.fullmatch, state) if named), default=0)
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            if quantizer := QUANTIZER.fullmatch(key):
                if int(quantizer[1]) >= levels:
                    continue
                named = factorized(f"codebook.books.{quantizer[1]}.", quantizer[2], quantizer[3], value)
                if quantizer[2] == "codebook":
                    out |= named
                    continue
                ((name, value),) = named.items()
            elif (name := _place(key, stages)) is None:
                out[key] = value  # of another model: refused by its name
                continue
            head, _, last = name.rpartition(".")
            if last == "weight":
                out |= {f"{head}.{NORMED['weight_g']}": length_of(value), f"{head}.{NORMED['weight_v']}": value}
            else:
                out[f"{head}.{NORMED.get(last, last)}"] = value
        return out


def length_of(weight: Tensor) -> Tensor:
    """float [n, ...] -> [n, 1, ...]: as weight norm keeps it."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))


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
