"""EnCodec (Défossez et al., arXiv 2210.13438) as gentok's own Codec, with released weights (encodec_keys.py) or to be trained.

The networks and the residual codebook are gentok's; no other library is needed.
"""

from __future__ import annotations

from gentok.tokenizers.pretrained.encodec_keys import load_encodec
from gentok.tokenizers.pretrained.released import ReleasedCodec

__all__ = ["EnCodec"]


class EnCodec(ReleasedCodec, id="tokenizer/encodec"):
    __doc__ = ReleasedCodec.__doc__

    def load_weights(self, path: str) -> None:
        load_encodec(self, path)
