"""Mimi ("Moshi", arXiv 2410.00037, section 3.3) as gentok's own Codec, with released weights (mimi_keys.py) or to be trained.

The networks and the codebook are gentok's; no other library is needed. The distillation of the semantic level from WavLM and the
adversaries belong to training and are no part of it.
"""

from __future__ import annotations

from gentok.tokenizers.pretrained.mimi_keys import load_mimi
from gentok.tokenizers.pretrained.released import ReleasedCodec

__all__ = ["Mimi"]


class Mimi(ReleasedCodec):
    __doc__ = ReleasedCodec.__doc__

    def load_weights(self, path: str) -> None:
        load_mimi(self, path)
