"""A bidirectional transformer with a token density, for tokens on a grid and, behind them, others (FlexTok's patches and registers)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gentok.distributed import world_size
from gentok.nn.density import Density, Shape
from gentok.nn.density_blocks import Side, begin, blocks_of, sparse_group
from gentok.nn.feed_forward import feed_forward_width
from gentok.nn.norm import RMSNorm

__all__ = ["DensityTransformer"]


class DensityTransformer(nn.Module):
    """As Transformer, of the same settings, with the blocks of a plan (nn/density.py).

    Args:
        density: the plan.
        width: D.
        depth: blocks, of all kinds together.
        heads: of attention.
        adaln: kinds of tokens, each modulated by itself, patches first; False: no modulation.

    Raises:
        ValueError: the plan has more blocks than `depth`.
    """

    def __init__(self, density: Density, width: int, depth: int, heads: int, adaln: bool | int = False):
        super().__init__()
        self.density, self.plan = density, density.plan(depth)
        self.blocks = blocks_of(density, depth, width, heads, feed_forward_width(width), "swiglu", True, adaln, False, 0.0)
        self.norm = RMSNorm(width)

    def begin(self, zero_gates: bool) -> None:
        """Makes the `recover` blocks the identity, once weights are initialised; as `density_blocks.begin`."""
        begin(self.blocks, zero_gates)

    def forward(
        self, x: Tensor, grid: Shape, t: Tensor | None, vector: Tensor | None, kinds: tuple[int, int] | None,
        taps: Mapping[int, list[Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """The whole sequence.

        Args:
            x: float [B, T, D]: the tokens of the grid, then others.
            grid: (rows, columns).
            t: float [B], the rows' times; None: there are none, and level 0 holds.
            vector: float [B, D], by which blocks are modulated.
            kinds: how many tokens are modulated each way; None: x is not modulated.
            taps: as in Transformer; no block among the few tokens.

        Returns:
            float [B, T, D], normalised.
        """
        rows = self._rows(t, len(x), x.device)
        number = 0
        while number < len(self.blocks):
            if self.plan[number] == "gather":
                last = self.plan.index("recover", number)
                x = self._groups(self.blocks[number : last + 1], x, grid, vector, rows)
                number = last
            else:
                x = self.blocks[number](x, vector=vector, kinds=kinds)
            if taps is not None and number in taps:
                taps[number].append(x)
            number += 1
        return self.norm(x)

    def _rows(self, t: Tensor | None, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        """The rows of each level; where t has no values (on the meta device), all are of level 0, which has most tokens."""
        if t is None or t.is_meta or len(self.density.rates) == 1:
            return (torch.arange(batch, device=device),)
        levels = self.density.level(t)
        return levels.argsort(stable=True).split(levels.bincount(minlength=len(self.density.rates)).tolist())

    def _groups(self, blocks: nn.ModuleList, x: Tensor, grid: Shape, vector: Tensor | None, rows: tuple[Tensor, ...]) -> Tensor:
        """`_group` of the rows of each level. Sharded blocks gather their weights when they are called, so all processes of a training run
        call them as often: one row goes through a level that has none here, and is left out."""
        together = self.training and torch.is_grad_enabled() and world_size() > 1
        parts = []
        for level, own in enumerate(rows):
            if len(own) == len(x) and not together:
                return self._group(blocks, x, grid, vector, level)
            if len(own) or together:
                taken = own if len(own) else torch.zeros(1, dtype=torch.int64, device=x.device)
                given = None if vector is None else vector[taken]
                parts.append(self._group(blocks, x[taken], grid, given, level)[: len(own)])
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _group(self, blocks: nn.ModuleList, x: Tensor, grid: Shape, vector: Tensor | None, level: int) -> Tensor:
        small, on_grid = self.density.small(grid, level), grid[0] * grid[1]
        others = x.shape[1] - on_grid if self.density.registers else 0
        full, few = Side((on_grid, others)), Side((small[0] * small[1], others))
        return sparse_group(list(blocks), x, [grid], [small], full, few, vector=vector)
