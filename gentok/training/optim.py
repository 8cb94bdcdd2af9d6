"""Optimizers (torch's) and learning-rate schedules as plain, buildable settings.

A schedule maps (progress in [0, 1], step) to a factor of the learning rate. Progress is of the run, by steps or by the clock, so that a
run with a time budget ends at the end of its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.distributed.tensor import DTensor

from gentok.interfaces import Optimizer, Schedule
from gentok.settings import Fraction, FractionBelow1, NonNegativeFloat, NonNegativeInt, PositiveFloat

__all__ = ["AdamW", "Constant", "Linear", "Cosine"]


@dataclass(frozen=True)
class AdamW(Optimizer, id="optimizer/adamw"):
    """torch.optim.AdamW (Loshchilov and Hutter, arXiv 1711.05101); weight decay on matrices and kernels only, not on embeddings. A part of
    a model that has a `pace` learns at so many times the rate."""

    lr: NonNegativeFloat = 1e-3
    betas: Annotated[Sequence[FractionBelow1], Field(min_length=2, max_length=2)] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    eps: PositiveFloat = 1e-8

    def __call__(self, module: nn.Module) -> torch.optim.Optimizer:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        pace = {id(p): float(m.pace) for m in module.modules() if hasattr(m, "pace") for p in m.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for p in module.parameters():
            if p.requires_grad:
                groups.setdefault((pace.get(id(p), 1.0), p.dim() < 2 or id(p) in embeddings), []).append(p)
        # shards and whole tensors together are updated one by one
        one_kind = len({isinstance(p, DTensor) for group in groups.values() for p in group}) == 1
        how = {"fused": True} if one_kind else {"foreach": False}
        options = [
            {"params": group, "weight_decay": 0.0 if free else self.weight_decay, "lr": self.lr * own}
            for (own, free), group in sorted(groups.items(), key=lambda item: item[0])
        ]
        return torch.optim.AdamW(options, lr=self.lr, betas=tuple(self.betas), eps=self.eps, **how)


@dataclass(frozen=True)
class Constant(Schedule, id="schedule/constant"):
    """Linear warm-up over `warmup` steps, then 1."""

    warmup: NonNegativeInt = 100

    def __call__(self, progress: float, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True)
class Linear(Schedule, id="schedule/linear"):
    """Linear warm-up, then a line to `final` at progress 1."""

    warmup: NonNegativeInt = 100
    final: Fraction = 0.0

    def __call__(self, progress: float, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup)) * (1 - (1 - self.final) * min(progress, 1.0))


@dataclass(frozen=True)
class Cosine(Schedule, id="schedule/cosine"):
    """Linear warm-up, then half a cosine to `final` at progress 1 (Loshchilov and Hutter, arXiv 1608.03983)."""

    warmup: NonNegativeInt = 100
    final: Fraction = 0.0

    def __call__(self, progress: float, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return min(1.0, (step + 1) / max(1, self.warmup)) * (self.final + (1 - self.final) * cosine)
