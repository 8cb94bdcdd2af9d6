"""What the wrappers of pretrained codecs share: the halves of a library's model as the parts of gentok's Codec.

So lengths, levels, bundles and fine-tuning are Codec's (gentok/tokenizers/codec.py); codes and sound are the library's. None of them works
chunk by chunk. A wrapper is built from `path` or `config`, as the image ones (gentok/tokenizers/pretrained/base.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.errors import counted
from gentok.interfaces import Codebook, Layer, LocalPath, Loss
from gentok.settings import CheckedDataclass, Count, PositiveInt
from gentok.tokenizers.codec import Codec
from gentok.tokenizers.pretrained.base import Portable, load_model, settings_of
from gentok.tokenizers.pretrained.levels import Level

__all__ = ["CodecOptions", "CodecSettings", "Half", "PretrainedCodec", "SemanticModel", "TransformersCodec", "check_levels", "first_levels"]


class Half(nn.Module, Layer):
    """An encoder or decoder of a library as a part of Codec. Subclasses may change `forward`."""

    causal = False

    def __init__(self, model: nn.Module, channels: int, width: int, hop: int):
        """
        Args:
            model: the library's network.
            channels: of the sound.
            width: D.
            hop: samples per frame.
        """
        super().__init__()
        self.model, self.channels, self.width, self.hop = model, channels, width, hop

    def forward(self, x: Tensor) -> Tensor:
        """Encoder: sound float [B, C, T] -> [B, D, ceil(T / hop)]. Decoder: [B, D, N] -> [B, C, N * hop]."""
        return self.model(x)


class PaddedEncoder(Half):
    """For networks that do not pad the last frame themselves: zeros up to a whole one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.pad(x, (0, -x.shape[2] % self.hop)))


class PaddedDecoder(Half):
    """For networks that stop some samples short: zeros up to N * hop."""

    def forward(self, z: Tensor) -> Tensor:
        x = self.model(z)
        return F.pad(x, (0, z.shape[2] * self.hop - x.shape[2]))


class SemanticModel(nn.Module):
    """A network of what is said, never trained with the codec: without gradients, and always in eval mode."""

    def __init__(self, model: nn.Module):
        super().__init__()
        if hasattr(model, "masked_spec_embed"):  # of its own training; the library makes it on the CPU wherever the rest is made
            model.masked_spec_embed = nn.Parameter(model.masked_spec_embed.to(next(model.encoder.parameters()).device))
        self.model = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SemanticModel:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, **options: Any) -> Any:
        """The library's network takes and gives these."""
        return self.model(x, **options)


def check_levels(levels: int | None, there: int) -> None:
    """Raises ValueError where a model has fewer than `levels` levels."""
    if levels is not None and not 1 <= levels <= there:
        raise ValueError(f"this model has {counted(there, 'level')}; got tokenizer.levels={levels}")


def first_levels(layers: Sequence[nn.Module], levels: int | None, kind: type[Level]) -> list[Level]:
    """The first `levels` of a quantizer's layers (None: all), each a Level. Raises ValueError where it has fewer."""
    check_levels(levels, len(layers))
    return [kind(layer) for layer in layers[: levels or len(layers)]]


@dataclass(frozen=True)
class CodecSettings(CheckedDataclass):
    """What every model can be told, wherever it is loaded from.

    Attributes:
        levels: the first of the model's levels to use; null: all.
        losses: (reconstruction, media) -> {name: weighted scalar}, for fine-tuning.
        media_shape: of the data, as of Codec.
    """

    levels: Count | None = None
    losses: Loss | None = None
    media_shape: Sequence[PositiveInt] | None = None


CodecOptions = Annotated[Any, CodecSettings]
"""Of a constructor's `**options`: they are the fields of CodecSettings (gentok/build.py reads this)."""


class PretrainedCodec(Portable, Codec):
    """A model of another library as the parts of a Codec."""

    def __init__(self, parts: tuple[Half, Codebook, Half], config: Mapping[str, Any], sample_rate: PositiveInt, settings: CodecSettings):
        """
        Args:
            parts: encoder, codebook and decoder.
            config: what the model is rebuilt from.
            sample_rate: as of Codec.
            settings: likewise; the codebook has their levels already.
        """
        super().__init__(*parts, sample_rate=sample_rate, losses=settings.losses, media_shape=settings.media_shape)
        self.model_config = dict(config)


class TransformersCodec(PretrainedCodec):
    """A codec of transformers. Subclasses name it, and give `parts_of`.

    Attributes:
        model_name: the class of the model.
        rate_name: of the entry of its configuration that is the sample rate.
        downloads: whether it may be downloaded; else a hub name has to be in the cache.
    """

    model_name: ClassVar[str]
    rate_name: ClassVar[str] = "sampling_rate"
    downloads: ClassVar[bool] = True

    def __init__(
        self,
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        **options: CodecOptions,
    ):
        """
        Args:
            path: a folder written by the model's save_pretrained, or a hub name.
            subfolder: of path, where the model lies in it.
            config: instead of path: the model's configuration, for random weights.
            options: as in CodecSettings.

        Raises:
            ValueError: not exactly one of path and config is given, or the model has no such levels or sends more than codes.
            FileNotFoundError: nothing loads from path.
        """
        model, settings = load_model("transformers", self.model_name, path, config, subfolder, self.downloads), CodecSettings(**options)
        rate = getattr(model.config, self.rate_name)  # of the library's object
        super().__init__(self.parts_of(model, settings.levels), self.config_of(model), rate, settings)

    @staticmethod
    def parts_of(model: nn.Module, levels: int | None) -> tuple[Half, Codebook, Half]:
        """The model's encoder, the first `levels` of its quantizer, and its decoder."""
        raise NotImplementedError

    @staticmethod
    def config_of(model: nn.Module) -> dict[str, Any]:
        """What the model is rebuilt from."""
        return settings_of("transformers", model)
