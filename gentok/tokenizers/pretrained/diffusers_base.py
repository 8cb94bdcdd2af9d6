"""Configurations of diffusers models."""

from __future__ import annotations

from typing import Any

from torch import nn

from gentok.tokenizers.pretrained.base import Pretrained, plain

__all__ = ["DiffusersModel"]


class DiffusersModel(Pretrained):
    """A model whose configuration is a FrozenDict in `model.config`, the constructor's arguments."""

    library = "diffusers"

    def _from_config(self, cls: type, config: dict[str, Any]) -> nn.Module:
        return cls(**config)

    def _config_of(self, model: nn.Module) -> dict[str, Any]:
        return plain(dict(model.config))
