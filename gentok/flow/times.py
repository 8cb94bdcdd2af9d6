"""At which times a flow is trained: distributions of t in (0, 1), each by its quantile function, so that one
uniform number is one time.

    uniform        t = u
    logit-normal   t = sigmoid(mean + std z), z standard normal; Esser et al., SD3, arXiv 2403.03206
    mode           t = 1 - u - s (cos^2(pi u / 2) - 1 + u), SD3's "mode sampling with heavy tails"
    stratified     any of them, with a batch's numbers u spread evenly over (0, 1); Kingma et al.,
                   arXiv 2107.00630, appendix I.1

A row's time is drawn from its own stream. Stratified times depend on which rows share a step, by intent; not
on how these are spread over processes: every row draws a key, and its stratum is the rank of its key among
those of all processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.distributed import all_gather
from gentok.interfaces import TimeDistribution
from gentok.rng import RowRNG
from gentok.settings import PositiveFloat

__all__ = ["Times", "Uniform", "LogitNormal", "Mode", "Stratified"]


class Times(TimeDistribution):
    """A distribution of times."""

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform numbers, float64 [B] in (0, 1) -> times, float64 [B] in (0, 1)."""
        raise NotImplementedError

    def __call__(self, rng: RowRNG) -> Tensor:
        """Draws a time per row of `rng`: float64 [B]."""
        return self.quantile(rng.uniform())


@dataclass(frozen=True)
class Uniform(Times, id="time/uniform"):
    """All times with the same density."""

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal(Times, id="time/logit_normal"):
    """A sigmoid of a normal number.

    Args:
        mean: in logits; above 0 it favours noise, below 0 data.
        std: > 0, in logits.
    """

    mean: float = 0.0
    std: PositiveFloat = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Mode(Times, id="time/mode"):
    """SD3's mode sampling.

    Args:
        scale: s in [-1, 2 / (pi - 2)]; above 0 it favours the middle, below 0 the ends.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"mode sampling of times needs scale in [-1, {2 / (math.pi - 2):.4f}]; got {self.scale}")

    def quantile(self, u: Tensor) -> Tensor:
        """Falling in u, from 1 to 0, as in the paper."""
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


@dataclass(frozen=True)
class Stratified(Times, id="time/stratified"):
    """Times of another distribution that are spread evenly over a step's rows.

    Args:
        times: that distribution.
    """

    times: Times

    def quantile(self, u: Tensor) -> Tensor:
        return self.times.quantile(u)

    def __call__(self, rng: RowRNG) -> Tensor:
        key, u = rng.uniform(2).unbind(1)
        keys = all_gather(key)
        rank = (keys < key[:, None]).sum(1)
        return self.times.quantile((rank + u) / len(keys))
