"""Ancestral sampling of masked diffusion in T steps: what is revealed in one step is drawn together.

Sahoo et al., MDLM, arXiv 2406.07524, section 3 and appendix; Shi et al., MD4, arXiv 2406.04329. In a step t
-> s of a grid over [0, 1] every masked cell is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t)
= 1 - m_s / m_t, and then drawn from the network's distribution at x_t and the time m_t = 1 - alpha_t. That a
step's cells are drawn as if independent is the only error; it falls as 1 / T. "Unmask?" and "which id?" are
separate draws: one race between V ids and a dominant "stay masked" is where float32 random numbers go wrong
(gentok/metrics/truncation.py).

The steps at which cells are revealed depend on nothing else, so they are drawn before the first call: the
step within which m falls below a uniform number of each cell's own. cache = true then computes a row only in
the steps in which it reveals something. That is exactly the sampler that calls the network in every step (the
same ids, row by row, also for a network that uses time), and needs on average sum_i (1 - (1 - w_i)^N) calls
for N masked cells, w_i = m_i - m_(i+1): with the linear schedule T (1 - (1 - 1 / T)^N), never more than N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gentok.flow.absorbing import mask_schedule
from gentok.samplers.base import setting
from gentok.samplers.first_hitting import hitting_shares
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import PositiveInt

__all__ = ["Ancestral", "expected_calls"]


def expected_calls(n_masked: int, steps: int, schedule: str = "linear") -> float:
    """The mean number of network calls of a row, cached: the expected number of steps that reveal something.

    Args:
        n_masked: masked cells of the row.
        steps: T.
        schedule: of the masked share, as of the sampler.
    """
    grid = mask_schedule(schedule).grid(steps)
    return sum(1 - (1 - (above - below)) ** n_masked for above, below in zip(grid, grid[1:]))


@dataclass(frozen=True)
class Ancestral(UnmaskingSampler, id="sampler/ancestral"):
    """Masked diffusion in T steps of time.

    Args:
        steps: T.
        schedule: of the masked share over them (flow/absorbing.py).
        cache: rows are computed only in steps in which they reveal something.
    """

    steps: PositiveInt = 64
    schedule: str = setting("linear", parse=mask_schedule)
    cache: bool = True

    def unmask(self, state: UnmaskingState) -> None:
        grid = torch.tensor(mask_schedule(self.schedule).grid(self.steps), dtype=torch.float64, device=state.codes.device)
        shares = hitting_shares(state.free, state.rng)
        step = self.steps - torch.searchsorted(grid.flip(0), shares)  # m_step > share >= m_(step + 1)
        step = step.masked_fill(~state.free, -1)
        last = step.flatten(1).amax(1) if step.numel() else state.n_free - 1
        needed = step.unique().tolist() if self.cache else range(int(last.max()) + 1 if len(last) else 0)
        for i in needed:
            if i < 0:
                continue
            hit = step == i
            rows = (hit.flatten(1).any(1) if self.cache else last >= i).nonzero()[:, 0]
            logits = state.predict(rows, state.time_at(grid[i], rows))
            state.reveal(rows, logits, hit[rows])
            state.report(i + 1, self.steps)
