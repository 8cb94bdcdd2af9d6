"""SNAC (Siuzdak et al., arXiv 2410.14411) as gentok's own Codec, with released weights or to be trained.

The networks and the codebook are gentok's; no other library is needed. Read is the release of the authors: pytorch_model.bin of
hubertsiuzdak/snac_24khz. The models of 32 and 44.1 kHz have local attention, which gentok's networks have not: their files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gentok.tokenizers.pretrained.released import ReleasedCodec, factorized

__all__ = ["SNAC"]

QUANTIZER = re.compile(r"quantizer\.quantizers\.(\d+)\.(in_proj|out_proj|codebook)\.(.+)")
"""Level, part, tensor."""
LAYER = re.compile(r"(encoder\.block|decoder\.model)\.(\d+)(?:\.block\.(\d+))?(?:\.block\.(\d+))?\.(.+)")
"""Network, layer, layer of a stage, layer of a residual unit, tensor."""


class SNAC(ReleasedCodec, id="tokenizer/snac"):
    """A Codec of SNAC's networks and StridedResidual(FactorizedVQ)."""

    model = "SNAC"
    files = ("pytorch_model.bin", "model.safetensors")
    known = QUANTIZER
    released_by = "snac"

    @staticmethod
    def renamed(state: Mapping[str, Tensor], levels: int = 0) -> dict[str, Tensor]:
        """As of ReleasedCodec; all levels are taken. Stages of the decoder are nested there, and not here."""
        inner = [m for m in map(LAYER.fullmatch, state) if m and m[1] == "decoder.model" and m[3]]
        stages, inside = {int(m[2]) for m in inner}, 1 + max((int(m[3]) for m in inner), default=0)
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            if quantizer := QUANTIZER.fullmatch(key):
                out |= factorized(f"codebook.books.{quantizer[1]}.", quantizer[2], quantizer[3], value)
            elif named := LAYER.fullmatch(key):
                network, layer, unit, innermost, last = named.groups()
                last = last.replace("linear.", "scale.")
                if network == "decoder.model":
                    before = sum(stage < int(layer) for stage in stages)
                    layer, unit = str(int(layer) + before * (inside - 1) + int(unit or 0)), None
                out[".".join(filter(None, (network[:7], "layers", layer, unit, innermost and f"layers.{innermost}", last)))] = value
            else:
                out[key] = value  # of another model: refused by its name
        return out
