"""What the samplers of Masked models share: the rows of a batch while their masked cells are filled.

A row is computed only where it needs a prediction, and draws ids only for the cells that it reveals: from its
own stream, in the order of its cells, one group of equally many cells after the other over the batch. So what
a row draws does not depend on the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Masked
from gentok.samplers.base import Sampler
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.types import UNKNOWN

__all__ = ["UnmaskingSampler", "UnmaskingState"]


class UnmaskingState:
    """A batch whose masked cells are being filled.

    Args:
        request: what is to be sampled.
        filter: logits [..., V] -> those of the distribution that ids are drawn from.

    Attributes:
        codes: int64 [B, K, N], what is filled so far; written in place.
        free: bool [B, K, N], the cells that were masked at the start: those that may change.
        n_free: int64 [B], how many of them a row has.
        n_cells: int64 [B], how many cells a row has, known ones included.
        calls: int64 [B], network calls that each row needed.
    """

    def __init__(self, request: SampleRequest, filter: Callable[[Tensor], Tensor]):
        self.request, self.filter, self.rng = request, filter, request.rng
        self.codes, self.spec = request.tokens.codes, request.tokens.spec
        self.free = request.tokens.masked
        self.n_free = self.free.sum((1, 2))
        self.n_cells = self.n_free + request.tokens.present.sum((1, 2))
        self.calls = torch.zeros_like(self.n_free)

    def masked(self, rows: Tensor) -> Tensor:
        """bool [b, K, N]: what is not filled yet in some rows."""
        return self.codes[rows] == UNKNOWN

    def time_at(self, share: float | Tensor, rows: Tensor) -> Tensor:
        """The time of a network that uses it, where each free cell is masked with some probability.

        Args:
            share: that probability, one number or float64 [b].
            rows: int64 [b].

        Returns:
            Tensor: float64 [b], the expected masked share of all cells of each row, known ones included.
        """
        return share * self.n_free[rows].double() / self.n_cells[rows].clamp(min=1)

    def predict(self, rows: Tensor, time: Tensor | None = None) -> Tensor:
        """One network call.

        Args:
            rows: int64 [b].
            time: float64 [b], for a network that uses it; None: the masked share of each row.

        Returns:
            Tensor: logits [b, K, N, V].
        """
        part = self.request.rows(rows, self.codes)
        if time is None:
            time = part.tokens.masked.sum((1, 2)).double() / self.n_cells[rows].clamp(min=1)
        logits = part.model.logits(part.tokens, part.condition, time)
        self.calls[rows] += 1
        part.network_calls.add(part.model, part.tokens.codes.numel())
        return logits

    def reveal(self, rows: Tensor, logits: Tensor, cells: Tensor) -> None:
        """Draws the ids of some cells from their filtered distributions and writes them.

        Args:
            rows: int64 [b].
            logits: [b, K, N, V] of these rows.
            cells: bool [b, K, N], which cells; those that are not free are left out.
        """
        flat_logits, flat_cells = logits.flatten(1, 2), (cells & self.free[rows]).flatten(1)
        codes = self.codes.view(len(self.codes), -1)
        counts = flat_cells.sum(1)
        for count in counts.unique().tolist():
            if not count:
                continue
            group = (counts == count).nonzero()[:, 0]
            places = flat_cells[group].nonzero()[:, 1].view(len(group), count)
            filtered, positions = self.filter(flat_logits[group[:, None], places]), cells.shape[2]
            ids = self.request.choose_at(filtered, self.rng.rows(rows[group]), places // positions, places % positions)
            codes[rows[group][:, None], places] = ids

    def until_full(self, chosen: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Reveals what a rule picks, call by call, until no row has masked cells.

        Args:
            chosen: (logits [b, K, N, V], masked cells bool [b, K, N]) -> bool [b, K, N], at least one masked
                cell of each row.

        Raises:
            ValueError: the rule chose no masked cell of a row, so that the loop would not end.
        """
        done, rows = 0, self.n_free.nonzero()[:, 0]
        while len(rows):
            logits, masked = self.predict(rows), self.masked(rows)
            cells = chosen(logits, masked) & masked
            if not bool(cells.flatten(1).any(1).all()):
                raise ValueError("a rule of unmasking must choose at least one masked cell of each row; it chose none")
            self.reveal(rows, logits, cells)
            done += 1
            rows = rows[self.masked(rows).flatten(1).any(1)]
            self.report(done, done + int(self.masked(rows).sum((1, 2)).amax(0)) if len(rows) else done)

    def report(self, step: int, steps: int) -> None:
        """Reports that so many steps are done, of how many."""
        self.request.report(self.codes, step, steps)


@dataclass(frozen=True)
class UnmaskingSampler(Sampler):
    """A sampler of Masked models that fills masked cells by `unmask`."""

    requires = Masked
    exact = False
    any_known = True
    marks = True

    def run(self, request: SampleRequest) -> SampleOutput:
        state = UnmaskingState(request, self.filter)
        self.unmask(state)
        return request.output(state.codes, state.calls)

    @abstractmethod
    def unmask(self, state: UnmaskingState) -> None:
        """Fills all masked cells."""
