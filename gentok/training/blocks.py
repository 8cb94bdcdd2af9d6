"""trainer.compile and trainer.checkpoint_activations: how the repeated blocks of what is trained run (gentok/nn/block.py)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gentok.errors import ConfigError
from gentok.nn.block import Block

__all__ = ["COMPILER", "set_blocks"]

COMPILER = "inductor"
"""The backend of torch.compile."""


def set_blocks(model: nn.Module, settings: Mapping[str, Any], part: str) -> None:
    """Tells all blocks of a model how to run while they are trained.

    Args:
        model: a tokenizer or a generator.
        settings: config["trainer"].
        part: what the model is, for the message.

    Raises:
        ConfigError: it has no such blocks, or this machine cannot compile.
    """
    compiled, recomputed = settings.get("compile", False), settings.get("checkpoint_activations", False)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for name in ("compile", "checkpoint_activations"):
        if settings.get(name, False) and not blocks:
            raise ConfigError(f"trainer.{name}=true is of transformer blocks, and this {part} has none: set trainer.{name}=false")
    if compiled and COMPILER == "inductor" and (settings["accelerator"] == "cpu" or not torch.cuda.is_available()):
        program = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
        if shutil.which(program) is None:
            raise ConfigError(f"trainer.compile=true needs a C++ compiler, and there is no {program}: install one, or set it to false")
    for block in blocks:
        block.recompute, block.compiler = recomputed, COMPILER if compiled else None
