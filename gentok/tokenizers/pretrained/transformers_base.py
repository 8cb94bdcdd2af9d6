"""Configurations of transformers models."""

from __future__ import annotations

from typing import Any

from torch import nn

from gentok.tokenizers.pretrained.base import Pretrained, plain

__all__ = ["TransformersModel"]


class TransformersModel(Pretrained):
    """A model whose configuration is a PretrainedConfig: what its class declares itself is kept, what all share is not."""

    library = "transformers"

    def _from_config(self, cls: type, config: dict[str, Any]) -> nn.Module:
        return cls(cls.config_class(**config))

    def _config_of(self, model: nn.Module) -> dict[str, Any]:
        own = [name for name in type(model.config).__annotations__ if name not in ("model_type", "base_config_key")]
        return plain({name: getattr(model.config, name) for name in own})
