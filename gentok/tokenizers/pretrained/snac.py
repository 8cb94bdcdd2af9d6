"""SNAC (Siuzdak et al., arXiv 2410.14411) as gentok's own Codec, with released weights (snac_keys.py) or to be trained.

The networks and the codebook are gentok's; no other library is needed.
"""

from __future__ import annotations

from gentok.tokenizers.pretrained.released import ReleasedCodec
from gentok.tokenizers.pretrained.snac_keys import load_snac

__all__ = ["SNAC"]


class SNAC(ReleasedCodec, id="tokenizer/snac"):
    __doc__ = ReleasedCodec.__doc__

    def load_weights(self, path: str) -> None:
        load_snac(self, path)
