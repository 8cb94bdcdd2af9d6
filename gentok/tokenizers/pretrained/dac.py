"""The Descript Audio Codec (Kumar et al., arXiv 2306.06546) as gentok's own Codec, with released weights (dac_keys.py) or to be trained.

The networks and the codebook are gentok's; no other library is needed.
"""

from __future__ import annotations

from gentok.tokenizers.pretrained.dac_keys import load_dac
from gentok.tokenizers.pretrained.released import ReleasedCodec

__all__ = ["DAC"]


class DAC(ReleasedCodec, id="tokenizer/dac"):
    __doc__ = ReleasedCodec.__doc__

    def load_weights(self, path: str) -> None:
        load_dac(self, path)
