"""Weights so large that a network's distribution depends on everything and is far from uniform."""

import torch
from torch import nn

from gentok.rng import RowRNG


@torch.no_grad()
def randomized(model: nn.Module, seed: int) -> nn.Module:
    """The model with normal numbers of deviation 0.35 in its matrices; vectors, such as norms, stay."""
    rng = RowRNG([seed])
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(rng.normal(*parameter.shape)[0] * 0.35)
    return model
