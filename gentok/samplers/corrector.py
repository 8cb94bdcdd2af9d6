"""Forward-backward corrector: mask some cells of finished items again, draw them anew, repeat.

Campbell et al., "A Continuous Time Framework for Discrete Denoising Models", arXiv 2205.14987, section 4.4,
for absorbing diffusion. One round is a step forward in time (some cells are masked) and one backward (they
are filled given the rest): it leaves the distribution of the data where it is, and moves any other towards
it. Starts from a draft, of any sampler, or from first-hitting's own samples.

    parallel = false   the masked cells are filled one by one in random order, a call each: block Gibbs
    parallel = true    all in one call, as if independent: approximate for cells > 1

If the model's conditionals agree, their joint distribution is stationary for parallel = false with any number
of cells, and for parallel = true with one; a network's do not quite agree, and filters and guidance change
them, hence exact = False. steps = 0 gives the draft back.

Choice: a round masks a fixed number of cells, uniformly chosen; the paper's rates mask a random number of
them. Known cells are never masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gentok.flow.random_cells import rank_in_row
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import NonNegativeInt, PositiveInt
from gentok.types import UNKNOWN

__all__ = ["Corrector"]


@dataclass(frozen=True)
class Corrector(UnmaskingSampler, id="sampler/corrector"):
    """Rounds of masking and filling, from a draft or from samples of first-hitting.

    Args:
        steps: rounds, >= 0.
        cells: masked in each round, >= 1, of those that are not known.
        parallel: they are filled in one call.
        start: cells per call of the first-hitting run that fills what no draft gives, >= 1.
    """

    takes_draft = True
    revises = True
    marks = False

    steps: NonNegativeInt = 16
    cells: PositiveInt = 4
    parallel: bool = True
    start: PositiveInt = 4

    def unmask(self, state: UnmaskingState) -> None:
        if state.request.draft is not None:
            drafted = state.request.draft.codes
            state.codes = torch.where(state.free & (drafted >= 0), drafted, state.codes)
        if (state.codes == UNKNOWN).any():
            self._fill(state)
        rows = state.n_free.nonzero()[:, 0]
        free = state.free[rows]
        for i in range(self.steps if len(rows) else 0):
            keys = state.rng.rows(rows).uniform(*free.shape[1:]).masked_fill(~free, 2.0)
            rank = rank_in_row(keys)
            chosen = (rank < self.cells) & free
            state.codes[rows] = state.codes[rows].masked_fill(chosen, UNKNOWN)
            for j in range(1 if self.parallel else self.cells):
                cells = chosen if self.parallel else chosen & (rank == j)
                at = cells.flatten(1).any(1).nonzero()[:, 0]
                if len(at):
                    state.reveal(rows[at], state.predict(rows[at]), cells[at])
            state.report(i + 1, self.steps)

    def _fill(self, state: UnmaskingState) -> None:
        """Fills what is still masked by first-hitting, and counts its calls."""
        start = FirstHitting(cells_per_call=self.start, **self._filters)
        output = start.run(replace(state.request, tokens=state.request.with_codes(state.codes), on_step=None))
        state.codes = output.tokens.codes
        state.calls += output.calls
