"""MAR's sampling: masked vectors in a random order, more and more at once, each by a diffusion of its own.

Li et al., arXiv 2406.11838, sections 3.4 and 4.2. Step i of T leaves floor(n gamma(i / T)) of a row's n masked vectors masked, at least one
before the last step, gamma = cosine. Those that it fills are the next ones of the row's order, which is drawn at the start; they are drawn
given all that is known then, and not given one another: an approximation as far as a step fills several.

Guidance follows (N - m) / N, m the vectors that are masked after a step, in the last one 1, as in the release. Temperature is that of the
noise that the diffusion's steps add; filters have no meaning here. Known vectors stay, and any set of them can be known.

Deviation: what a vector is taken for on the way is cut at `clip`. Near t = 999 an error of the network is multiplied by 2e4, so that a
model that was trained for a short time would leave the data for good; numbers of unit variance are hardly ever above 10. clip=null: as
released.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.diffusion import reverse, spaced
from gentok.flow.random_cells import random_rank
from gentok.generators.base import MaskedVectors
from gentok.samplers.base import Sampler, setting
from gentok.samplers.draws import check_finite
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.samplers.stepwise import SCHEDULES, masked_counts
from gentok.settings import PositiveFloat, PositiveInt

__all__ = ["MARSampler"]


@dataclass(frozen=True)
class MARSampler(Sampler, id="sampler/mar"):
    """Masked vectors in a random order.

    Args:
        temperature: >= 0, of the noise that steps of the diffusion add: its standard deviation.
        steps: T, calls of the transformers at most; one vector per step where a row has no more masked vectors than steps.
        schedule: of the share that is still masked, one of samplers/stepwise.py.
        diffusion_steps: of each vector's diffusion, 2 to 1000.
        clip: the largest number that a vector is taken for on the way; None: any, as in the release.
    """

    requires = MaskedVectors
    exact = False
    any_known = True

    steps: PositiveInt = 64
    schedule: str = setting("cosine", choices=SCHEDULES)
    diffusion_steps: PositiveInt = setting(100, parse=spaced)
    clip: PositiveFloat | None = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_filters()

    def run(self, request: SampleRequest) -> SampleOutput:
        values, known = request.model.split(request.tokens)
        values, known = values.clone(), known.clone()
        rank = random_rank(~known[:, None], request.rng)[:, 0]
        left = (~known).sum(1)
        plan = masked_counts(left, self.steps, self.schedule)
        calls, total = torch.zeros_like(left), int((torch.cat((left[:, None], plan[:, :-1]), 1) > 0).any(0).sum())
        tokens, first = request.tokens, left
        for step in range(total):
            rows, after = (left > 0).nonzero()[:, 0], plan[:, step]
            cells = (rank > (first - left)[:, None]) & (rank <= (first - after)[:, None])
            condition = request.condition.rows(rows)
            hidden = request.model.hidden(values[rows], known[rows], condition)
            request.network_calls.add(request.model, len(rows) * rank.shape[1])
            self._fill(request, values, cells, rows, hidden, after)
            known, left = known | cells, after
            calls[rows] += 1
            tokens = request.model.finish(values, known, request.tokens)
            request.report(tokens, step + 1, total)
        return request.output(tokens, calls)

    def _fill(self, request: SampleRequest, values: Tensor, cells: Tensor, rows: Tensor, hidden: Tensor, after: Tensor) -> None:
        """Draws vectors and writes them into values [B, N, C].

        Args:
            request: of all rows.
            values: float [B, N, C].
            cells: bool [B, N], which vectors.
            rows: int64 [b], the rows that take part.
            hidden: of these rows, [b, N, ...].
            after: int64 [B], vectors that are masked afterwards.
        """
        model, positions = request.model, cells.shape[1]
        kinds = torch.stack((cells.sum(1), after.clamp(min=1)), 1)[rows]
        for count, masked in kinds.unique(dim=0).tolist():  # rows with as many vectors to draw, at the same progress
            group = (kinds == kinds.new_tensor([count, masked])).all(1).nonzero()[:, 0]
            rng, progress = request.rng.rows(rows[group]), (positions - masked) / positions
            places = cells[rows[group]].nonzero()[:, 1].view(len(group), count)
            given = hidden[group[:, None], places]
            x = reverse(
                lambda x, t, given=given, progress=progress: model.denoise(x, t, given, progress),  # type: ignore[misc]
                rng.normal(count, model.channels), self.diffusion_steps, self.temperature, rng, self.clip,
            )  # fmt: skip
            check_finite(x.abs().amax(-1), rng, "vector")
            values[rows[group][:, None], places] = x.to(values)
