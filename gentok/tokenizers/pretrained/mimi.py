"""Mimi ("Moshi", arXiv 2410.00037, section 3.3) as gentok's own Codec, with released weights (mimi_keys.py) or to be trained.

The networks and the codebook are gentok's; no other library is needed. The distillation of the semantic level from WavLM and the
adversaries belong to training and are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gentok.tokenizers.codec import Codec
from gentok.tokenizers.pretrained.mimi_keys import load_mimi

__all__ = ["Mimi"]


class Mimi(Codec):
    """weights: a file or folder with released weights, or None for random ones; the rest as in gentok.tokenizers.codec.Codec. A bundle
    holds the weights, so its configuration names no file. Raises ValueError with a line where the weights are of another model."""

    def __init__(
        self,
        encoder: Any,
        codebook: Any,
        decoder: Any,
        sample_rate: int,
        losses: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None,
        media_shape: Sequence[int] | None = None,
        weights: str | None = None,
    ):
        super().__init__(encoder, codebook, decoder, sample_rate, losses, media_shape)
        if weights is not None:
            load_mimi(self, weights)
            self.portable = without_weights


def without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a tokenizer whose weights lie beside it."""
    return {**config, "weights": None}
