"""Configurations of transformers models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gentok.interfaces import LocalPath
from gentok.tokenizers.pretrained.base import Pretrained, load_model, plain

__all__ = ["OfTransformers", "TransformersModel"]


class OfTransformers:
    """A model whose configuration is a PretrainedConfig: what its class declares itself is kept, what all share is not."""

    library = "transformers"

    def _load(self, name: str, path: LocalPath | None, config: Mapping[str, Any] | None, subfolder: str | None = None) -> nn.Module:
        """The model `name`, of `path` or of `config`; errors as in load_model."""
        return load_model(self.library, name, path, config, subfolder, lambda cls: self._from_config(cls, dict(config)))

    def _from_config(self, cls: type, config: dict[str, Any]) -> nn.Module:
        return cls(cls.config_class(**config))

    def _config_of(self, model: nn.Module) -> dict[str, Any]:
        own = [name for name in type(model.config).__annotations__ if name not in ("model_type", "base_config_key")]
        return plain({name: getattr(model.config, name) for name in own})


class TransformersModel(OfTransformers, Pretrained):
    """An image model of transformers."""
