"""Coordinates for sums of a residual codebook's rows: those of the subspace that the rows span, which may be
a small one."""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.interfaces import Codebook
from gentok.nn.constants import Constants

__all__ = ["sum_coordinates"]


def sum_coordinates(codebook: Codebook, levels: int, components: int, smear: float) -> tuple[Constants, Tensor]:
    """Measures a codebook's tables and draws sums of their rows.

    Args:
        codebook: a residual one.
        levels: K.
        components: M, how many sums.
        smear: s in units of the deepest level's spread.

    Returns:
        Constants in float64: axes [D, d] of the subspace; in it mean [K, d] and variance [K] of each level's
        rows (per coordinate); smear, which is s^2; and level, int64 [K, 1], 3 k. Then M sums of random rows
        for each first masked level k, one row of every level from k on, shifted and scaled to zero mean and
        unit variance: float32 [M, d, K].
    """
    tables = [codebook.table(k).detach().double() for k in range(levels)]
    meta, home = tables[0].is_meta, "meta" if tables[0].is_meta else "cpu"
    with torch.device(home):
        stacked = torch.cat([table.to(home) for table in tables])
        values, axes = torch.linalg.eigh(stacked.T @ stacked)
        if not meta:
            axes = axes[:, values > 1e-10 * values.max()]
        rows = [table.to(home) @ axes for table in tables]
        mean = torch.stack([table.mean(0) for table in rows])
        variance = torch.stack([table.var(0, unbiased=False).mean() for table in rows]).clamp(min=1e-12)
        sums = []
        for k in range(levels):
            drawn = sum(table[torch.randint(len(table), (components,))] for table in rows[k:])
            sums.append((drawn - mean[k:].sum(0)) / variance[k:].sum().sqrt())
        level = 3 * torch.arange(levels)[:, None]
    constants = Constants(axes=axes, mean=mean, variance=variance, smear=smear**2 * variance[-1], level=level)
    return constants, torch.stack(sums, 2).float()
