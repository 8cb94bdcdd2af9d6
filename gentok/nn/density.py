"""Token density (SparseDiT, first FlexDiT; Chang et al., arXiv 2412.06028): which blocks of a diffusion transformer see all tokens, and
which see few.

Blocks from the input to the output:

    pool                                      `pool` blocks whose attention is the uniform mean of the values
    [gather, sparse ..., recover, dense]      `groups` of these: few tokens, `sparse` blocks among them, all tokens again, one plain block
    dense                                     plain blocks, as many as are left

The few tokens are all tokens pooled to a smaller grid. Of N tokens M = (1 - r) N are left, r being the pruning rate. r may depend on the
time t of the flow (1: noise), since fine detail is decided late:

    r(t) = r_data                                                      t < 1/4
    r(t) = ((4 - 4 t) r_data + (4 t - 1) r_noise) / 3                  1/4 <= t <= 1

The blocks themselves are in nn/density_blocks.py.

Deviations: a grid has whole sides, each the full side times sqrt(1 - r), rounded. In training the paper gives every GPU an interval of t
with one number of tokens; here [1/4, 1] is cut into `levels` such intervals, each with the rate of its middle, in training and in sampling,
and rows of a batch at different levels are computed apart, so that a row does not depend on its batch. The release has no rates that
depend on t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.interfaces import Component
from gentok.settings import Count, FractionBelow1, NonNegativeInt

__all__ = ["Density", "Shape"]

Shape = tuple[int, int]
"""(rows, columns) of a grid of tokens."""


@dataclass(frozen=True)
class Density(Component, id="density/sparse_dense"):
    """How dense tokens are, in depth and in time.

    Args:
        rate: r_data, the share of tokens that sparse blocks do without.
        noise_rate: r_noise, that share at t = 1; None: `rate` at all times.
        levels: into how many intervals of constant rate [1/4, 1] is cut.
        pool: blocks that pool, at the bottom.
        groups: of sparse blocks.
        sparse: blocks among the few tokens, in each group; the paper's 28 blocks are pool=2, groups=4, sparse=3.
        registers: whether tokens that lie on no grid (FlexTok's registers) go through the sparse blocks, all of them; else they wait for
            the next dense one.

    Raises:
        ValueError: a setting is out of its range.
    """

    rate: FractionBelow1 = 0.75
    noise_rate: FractionBelow1 | None = None
    levels: Count = 4
    pool: NonNegativeInt = 1
    groups: Count = 1
    sparse: NonNegativeInt = 3
    registers: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_rate is not None and self.noise_rate < self.rate:
            raise ValueError(
                f"density: noise_rate={self.noise_rate} is below rate={self.rate}, and noise needs fewer tokens than data: set it to "
                f"{self.rate} or more"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """The pruning rate of each level; of level 0, t < 1/4, it is `rate`."""
        if self.noise_rate is None:
            return (self.rate,)
        middles = [1 / 4 + 3 / 4 * (k + 0.5) / self.levels for k in range(self.levels)]
        return (self.rate, *(((4 - 4 * t) * self.rate + (4 * t - 1) * self.noise_rate) / 3 for t in middles))

    def level(self, t: Tensor) -> Tensor:
        """t float [B] in [0, 1] -> int64 [B], which of `rates` holds at each."""
        if self.noise_rate is None:
            return torch.zeros(len(t), dtype=torch.int64, device=t.device)
        k = ((t.double() - 1 / 4) / (3 / 4) * self.levels).floor().long().clamp(max=self.levels - 1)
        return torch.where(t < 1 / 4, 0, 1 + k)

    def small(self, shape: Shape, level: int = 0) -> Shape:
        """The grid of the few tokens of a grid."""
        share = math.sqrt(1 - self.rates[level])
        return max(1, round(shape[0] * share)), max(1, round(shape[1] * share))

    def plan(self, depth: int) -> tuple[str, ...]:
        """What each of a network's blocks is: pool, gather, sparse, recover or dense. Raises ValueError where they are too few."""
        group = ("gather", *("sparse",) * self.sparse, "recover", "dense")
        first = ("pool",) * self.pool + group * self.groups
        if depth < len(first):
            raise ValueError(
                f"density: {self.pool} pooling blocks and {self.groups} groups of {len(group)} are {len(first)} blocks, and the network "
                f"has {depth}: give it more, or lower pool, groups or sparse"
            )
        return first + ("dense",) * (depth - len(first))

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raises ValueError where no level has fewer tokens than these grids."""
        if all(self.small(shape, level) == shape for shape in shapes for level in range(len(self.rates))):
            words = " or ".join(dict.fromkeys(f"{h} x {w}" for h, w in shapes))
            rate = f"{self.rates[-1]:.2g}"
            raise ValueError(f"density: a rate of {rate} leaves all tokens of a grid of {words}: raise it, or set density to null")
