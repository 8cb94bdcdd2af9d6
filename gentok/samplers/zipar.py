"""Rows of an image drawn side by side: an approximation.

ZipAR (He et al., arXiv 2412.04062). In a raster order, a row of the grid begins once the row above has `lag` cells,
so that all rows that have begun draw a cell in every call: (h - 1) lag + w calls for h x w cells instead of h w,
with lag = w plain autoregression. A cell is drawn without regard to the cells at the end of the rows above that are
not there yet: what the model reads in their place is the last cell of that row.

Deviation: the paper puts keys of later cells into the cache and replaces them; here every call feeds all from the
first missing cell on, which is one call as well, and computes more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gentok.generators.base import Causal
from gentok.samplers.base import Sampler, check_known
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import PositiveInt
from gentok.types import UNKNOWN, Raster

__all__ = ["ZipAR"]


@dataclass(frozen=True)
class ZipAR(Sampler, id="sampler/zipar"):
    """Rows of an image side by side, for generators of one level in raster order.

    Args:
        lag: cells that a row is ahead of the row below it, >= 1.
    """

    requires = Causal
    exact = False
    marks = True

    lag: PositiveInt = 4

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Also whether the tokens are a grid of one level."""
        if isinstance(model, type) or not super().fits(model):
            return super().fits(model)
        return isinstance(model.spec.grid, Raster) and model.spec.levels == 1 and not model.ends

    @classmethod
    def check_model(cls, model: Any) -> None:
        """As Sampler; also raises ValueError where the tokens are no grid of one level."""
        super().check_model(model)
        if not cls.fits(model):
            raise ValueError(
                f"zipar draws rows of an image of one level in raster order; these tokens are {model.spec.describe()}: use sampler=jacobi"
            )

    def run(self, request: SampleRequest) -> SampleOutput:
        model, tokens, layout = request.model, request.tokens, request.model.layout
        grid = model.spec.grid
        check_known(tokens, layout)
        if layout.steps != grid.positions:
            raise ValueError("zipar draws an image row by row, and this model fills holes in an order of its own: use sampler=jacobi")
        ids = layout.flatten(tokens.codes)[..., 0]  # [B, S]
        batch, steps = ids.shape
        position = layout.position[:, 0].to(ids.device)
        row, column = torch.arange(steps, device=ids.device) // grid.w, torch.arange(steps, device=ids.device) % grid.w
        calls = torch.zeros(batch, dtype=torch.int64, device=ids.device)
        first = self._first(ids)
        settled = torch.full_like(first, -1)
        cache = model.init_cache(request.condition, batch, 2 * steps) if bool((first < steps).any()) else None
        while bool((first < steps).any()):
            busy = (first < steps).nonzero()[:, 0]
            masked = ids == UNKNOWN
            ready = masked & self._ready(masked, grid, row, column)  # [B, S]: the next cell of every row that may go on
            shown = self._stand_ins(ids, masked, row)
            fed = torch.cat((model.begin.to(ids).expand(batch, 1), shown[:, :-1]), 1)
            begin = int(settled[busy].min()) + 1  # what was there before the last call is in the cache as it is
            until = int((ready * torch.arange(1, steps + 1, device=ids.device)).max())
            start, settled = torch.full_like(first, begin), first
            logits = model.logits(fed[:, begin:until, None], cache, start)[:, :, 0]
            model.commit(cache, start)
            request.network_calls.add(model, batch * (until - begin))
            for _ in range(int(ready.sum(1).max())):  # the cells of this call from the left: they take random numbers in this order
                drawing = ready.any(1).nonzero()[:, 0]
                cell = ready[drawing].to(torch.int64).argmax(1)
                filtered = self.filter(logits[drawing, cell - begin])
                ids[drawing, cell] = request.choose_at(filtered, request.rng.rows(drawing), torch.zeros_like(cell), position[cell])
                ready[drawing, cell] = False
            calls[busy] += 1
            first = self._first(ids)
            request.report(layout.unflatten(ids[..., None]), int(calls.max()), (grid.h - 1) * min(self.lag, grid.w) + grid.w)
        return request.output(layout.unflatten(ids[..., None]), calls)

    @staticmethod
    def _first(ids: torch.Tensor) -> torch.Tensor:
        masked = ids == UNKNOWN
        return torch.where(masked.any(1), masked.to(torch.int64).argmax(1), ids.shape[1])

    def _ready(self, masked: torch.Tensor, grid: Raster, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """bool [B, S]: cells that are the first missing one of their row, and far enough behind the first missing one of the row above."""
        by_row = masked.view(len(masked), grid.h, grid.w)
        frontier = torch.where(by_row.any(2), by_row.to(torch.int64).argmax(2), grid.w)  # [B, h]
        reach = torch.where(frontier == grid.w, 2 * grid.w, frontier)  # a row that is complete holds nobody back
        above = torch.cat((torch.full_like(reach[:, :1], 2 * grid.w), reach[:, :-1]), 1)
        able = frontier + min(self.lag, grid.w) <= above
        return (column == frontier[:, row]) & able[:, row]

    @staticmethod
    def _stand_ins(ids: torch.Tensor, masked: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """ids [B, S] where each missing cell holds the last cell before it that is there (0 where there is none)."""
        place = torch.where(masked, -1, torch.arange(ids.shape[1], device=ids.device)).cummax(1).values
        return torch.where(place >= 0, ids.gather(1, place.clamp(min=0)), 0)
