"""First-hitting sampling of masked diffusion: one network call per masked cell, without a step size and
without its error.

Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate
Categorical Sampling", arXiv 2409.02908, section 4. In reverse time each cell is revealed when the masked
share m = 1 - alpha falls to a number of its own, uniform in (0, 1): with n masked cells left the next is
reached at m u^(1/n), and it is one of them at random. There the network predicts it, given the time m and
everything that was revealed before. Here the uniform numbers of all cells are drawn at once and sorted, which
is the same distribution; no schedule enters.

Exact: the distribution of the continuous-time reverse process of the (filtered, guided) model. For a network
that uses no time it is random-order autoregressive sampling, one uniformly random order per row.

cells_per_call > 1 (the paper's parallel decoding) is an approximation: the next cells in the order are drawn
together, as if independent. order = 2 then corrects each cell's prediction for the time at which it is
revealed, from this call's prediction p at m and the last one's q at m' > m, linearly: p + w (p - q), w = (m -
m_cell) / (m' - m), at most 1; negative probabilities become 0. The paper's high-order variants extrapolate
likewise from cached predictions; the bound on w is ours. On a table of 4 cells with exact conditionals and
two cells per call, the total variation distance is 0.27 with order = 1 and 0.23 with order = 2 (`python
tests/exact/distances.py`).

Deviation: where cells are known from the start, the network's time is the expected share of all cells, m
times the share of those that were masked at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import PositiveInt
from gentok.types import RowRNG

__all__ = ["FirstHitting", "hitting_shares"]


def hitting_shares(free: Tensor, rng: RowRNG) -> Tensor:
    """free bool [B, K, N] -> float64 [B, K, N]: the masked share, uniform in (0, 1), at which each free cell
    is revealed; -1 elsewhere."""
    return rng.uniform(*free.shape[1:]).masked_fill(~free, -1.0)


def _extrapolated(logits: Tensor, before: Tensor, weight: Tensor) -> Tensor:
    """Logits of p + w (p - q), cut at 0: of p and of q [b, c, V], weight [b, c]."""
    p, q = logits.double().softmax(-1), before.double().softmax(-1)
    return (p + weight[..., None] * (p - q)).clamp(min=0).log()


@dataclass(frozen=True)
class FirstHitting(UnmaskingSampler, id="sampler/first_hitting"):
    """Masked diffusion in continuous time.

    Args:
        cells_per_call: cells of a row that are revealed by one network call, >= 1; the sampler is exact with
            1.
        order: 1, or 2 for predictions that are extrapolated to each cell's own time (the same with one cell
            per call).
    """

    exact = True

    cells_per_call: PositiveInt = 1
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exact", self.cells_per_call == 1)

    def unmask(self, state: UnmaskingState) -> None:
        width = self.cells_per_call
        shares, cells = hitting_shares(state.free, state.rng).flatten(1).sort(1, descending=True)
        rounds = -(-int(state.n_free.max()) // width) if len(state.n_free) else 0
        last: tuple[Tensor, Tensor, Tensor] | None = None
        for i in range(rounds):
            rows = (state.n_free > i * width).nonzero()[:, 0]
            places = cells[rows, i * width : (i + 1) * width]  # free cells come first, so what is not free lies at the end
            times = shares[rows, i * width : (i + 1) * width]
            hit = torch.zeros_like(state.free[rows]).flatten(1).scatter(1, places, times > 0).view_as(state.free[rows])
            time = times[:, 0]
            logits = state.predict(rows, state.time_at(time, rows))
            if self.order == 1 or width == 1:
                state.reveal(rows, logits, hit)
            else:
                state.reveal(rows, self._second_order(rows, logits, time, places, times, last), hit)
                last = (rows, logits, time)
            state.report(i + 1, rounds)

    def _second_order(
        self, rows: Tensor, logits: Tensor, time: Tensor, places: Tensor, times: Tensor, last: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        """Logits at `time` [b], of which those at `places` [b, c] are extrapolated to `times` [b, c];
        unchanged in the first call."""
        if last is None:
            return logits
        before = torch.searchsorted(last[0], rows)  # rows that are left were there in the last call
        at = torch.arange(len(rows), device=rows.device)[:, None]
        out = logits.flatten(1, 2).to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        weight = ((time[:, None] - times) / (last[2][before] - time)[:, None]).clamp(max=1.0)
        cell = _extrapolated(out[at, places], last[1].flatten(1, 2)[before][at, places], weight)
        out[at, places] = torch.where((times > 0)[..., None], cell, out[at, places])
        return out.view(logits.shape)
