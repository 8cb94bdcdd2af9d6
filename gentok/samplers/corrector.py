"""Forward-backward corrector: hide some cells of finished items again, draw them anew, repeat.

Campbell et al., "A Continuous Time Framework for Discrete Denoising Models", arXiv 2205.14987, section 4.4, for absorbing noise. One round
is a step forward in time (some cells are hidden) and one backward (they are filled given the rest): it leaves the data's law where it is,
and moves any other law towards it. Starts from a draft, of any sampler, or from first-hitting's own samples.

    parallel = false   the hidden cells are filled one by one in random order, a call each: block Gibbs sampling
    parallel = true    all in one call, as if independent: approximate for cells > 1

If the model's conditionals agree, their joint law is stationary for parallel = false with any number of cells, and for parallel = true with
one; a network's do not quite agree, and filters and guidance change them, hence exact = False. steps = 0 gives the draft back.

Choice: a round hides a fixed number of cells, uniformly chosen; the paper's rates hide a random number of them. Known cells are never
hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.random_cells import rank_in_row
from gentok.generators.base import Masked
from gentok.samplers.base import Choice, OnStep, SampleOutput, draw, initial
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.unmasking import Unmasking, UnmaskingSampler
from gentok.types import UNKNOWN, Condition, RowRNG, Tokens

__all__ = ["Corrector"]


@dataclass(frozen=True)
class Corrector(UnmaskingSampler, id="sampler/corrector"):
    """steps: rounds, >= 0. cells: hidden in each round, of those that are not known. parallel: they are filled in one call.
    start: cells per call of the first-hitting run that fills what no draft gives."""

    steps: int = 16
    cells: int = 4
    parallel: bool = True
    start: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0; got {self.steps}")
        if self.cells < 1 or self.start < 1:
            raise ValueError(f"cells and start must be >= 1; got {self.cells} and {self.start}")

    @torch.no_grad()
    def __call__(
        self,
        model: Masked,
        condition: Condition,
        *,
        rng: RowRNG,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: OnStep | None = None,
    ) -> SampleOutput:
        """As Sampler. draft: Tokens like known; its codes are where the sampler starts, its holes are filled first."""
        self.check_model(model)
        if lengths is None and known is None and draft is not None:
            lengths = draft.lengths
        tokens = initial(model.spec, rng, known, lengths)
        filling = Unmasking(self, model, condition, rng, tokens, choose or draw, on_step)
        if draft is not None:
            given = initial(model.spec, rng, draft, tokens.lengths).codes
            filling.codes = torch.where(filling.free & (given >= 0), given, filling.codes)
        self.fill(filling)
        return filling.output()

    def fill(self, filling: Unmasking) -> None:
        if (filling.codes == UNKNOWN).any():
            self._start(filling)
        for i in range(self.steps):
            rows = filling.rows(filling.begun > 0)
            if not len(rows):
                break
            keys = filling.streams(rows).uniform(*filling.free.shape[1:]).masked_fill(~filling.free[rows], 2.0)
            rank = rank_in_row(keys)
            hidden = (rank < self.cells) & filling.free[rows]
            filling.codes[rows] = filling.codes[rows].masked_fill(hidden, UNKNOWN)
            for j in range(1 if self.parallel else self.cells):
                now = hidden if self.parallel else hidden & (rank == j)
                at = now.flatten(1).any(1).nonzero()[:, 0]
                if len(at):
                    filling.fill(rows[at], filling.predict(rows[at]), now[at])
            filling.step(i + 1, self.steps)

    def _start(self, filling: Unmasking) -> None:
        """Fills what is still open by first-hitting, and counts its calls."""
        first = FirstHitting(cells_per_call=self.start, **self._filters)
        tokens = Tokens(filling.codes, filling.spec, filling.lengths)
        out = first(filling.model, filling.condition, rng=filling.rng, known=tokens, lengths=filling.lengths, choose=filling.choose)
        filling.codes = out.tokens.codes
        filling.calls += out.calls
        filling.network.update(out.network_calls)
