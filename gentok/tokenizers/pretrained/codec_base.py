"""What the wrappers of pretrained codecs share: the halves of a library's model as the parts of gentok's Codec.

So lengths, levels, bundles and fine-tuning are Codec's (gentok/tokenizers/codec.py), and codes and sound the library's. None of them works
chunk by chunk. A wrapper is built from `path` or `config`, as the image ones (gentok/tokenizers/pretrained/base.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import Layer, LocalPath, Loss
from gentok.tokenizers.codec import Codec
from gentok.tokenizers.pretrained.base import Portable
from gentok.tokenizers.pretrained.levels import Level, Levels
from gentok.tokenizers.pretrained.transformers_base import OfTransformers

__all__ = ["Half", "PretrainedCodec", "TransformersCodec", "first_levels"]


class Half(nn.Module, Layer):
    """An encoder or decoder of a library as a part of Codec. Subclasses may change `forward`."""

    causal = False

    def __init__(self, model: nn.Module, channels: int, width: int, hop: int):
        super().__init__()
        self.model, self.channels, self.width, self.hop = model, channels, width, hop

    def forward(self, x: Tensor) -> Tensor:
        """Encoder: sound float [B, C, T] -> [B, D, ceil(T / hop)]. Decoder: [B, D, N] -> [B, C, N * hop]."""
        return self.model(x)


class PaddedEncoder(Half):
    """For networks without a rule of their own for the last frame: zeros up to a whole one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.pad(x, (0, -x.shape[2] % self.hop)))


class PaddedDecoder(Half):
    """For networks that stop some samples short: zeros up to N * hop."""

    def forward(self, z: Tensor) -> Tensor:
        x = self.model(z)
        return F.pad(x, (0, z.shape[2] * self.hop - x.shape[2]))


def first_levels(layers: Sequence[nn.Module], levels: int | None, kind: type[Level]) -> list[Level]:
    """The first `levels` of a quantizer's layers (None: all). Raises ValueError with a line where it has fewer."""
    if levels is not None and not 1 <= levels <= len(layers):
        raise ValueError(f"this model has {len(layers)} level(s); got tokenizer.levels={levels}")
    return [kind(layer) for layer in layers[: levels or len(layers)]]


class PretrainedCodec(Portable, Codec):
    """A model of another library as encoder, codebook and decoder: `parts`. config: what the model is rebuilt from."""

    def __init__(
        self,
        parts: tuple[Half, Levels, Half],
        config: Mapping[str, Any],
        sample_rate: int,
        losses: Loss | None,
        media_shape: Sequence[int] | None,
    ):
        super().__init__(*parts, sample_rate=sample_rate, losses=losses, media_shape=media_shape)
        self.model_config = dict(config)


class TransformersCodec(OfTransformers, PretrainedCodec):
    """A codec of transformers. Subclasses give `model_name` and `_parts`: (model, levels) -> encoder, codebook, decoder."""

    model_name: str

    def __init__(
        self,
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        levels: int | None = None,
        losses: Loss | None = None,
        media_shape: Sequence[int] | None = None,
    ):
        model = self._load(self.model_name, path, config, subfolder)
        super().__init__(self._parts(model, levels), self._config_of(model), model.config.sampling_rate, losses, media_shape)

    @staticmethod
    def _parts(model: nn.Module, levels: int | None) -> tuple[Half, Levels, Half]:
        raise NotImplementedError
