"""Next-scale sampling: all cells of a scale at once, scale by scale (Tian et al., VAR, arXiv 2404.02905).

    codes of scale s ~ p(. | scales before s), filtered and guided as asked, each cell by itself

Exact: the cells of a scale are independent in the model given the scales before it, so this draws from the model's
own (filtered, guided) distribution. One call per scale that has cells to be drawn; it computes the cells of that
scale, and those of known scales that no call has read yet. Known cells are exact where none lies in a later scale
than a masked one: an image that is known at its first scales is refined, and of the scale that comes next some cells
may be known too.

`repredict` (Qu et al., TokenFlow, arXiv 2412.03069) draws every scale but the first again, given the scales before it
and its own cells as they were drawn before: one pass more for each of its numbers, with top-k at that number (the
paper draws with 1200, then 100 and 1). An approximation: the model learnt to predict a scale from those before it, and
the last pass follows no distribution of its own. Such a scale is read anew with the next one.

Guidance that grows over the scales, (1 + t) l_c - t l_u with t = 1.5 s / (S - 1) in VAR and 7.5 s / (S - 1) in
TokenFlow, is guidance = 2.5 (8.5) with guidance_schedule = linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gentok.generators.base import NextScale
from gentok.samplers.base import Sampler, check_steps
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import PositiveInts

__all__ = ["NextScaleSampler"]


@dataclass(frozen=True)
class NextScaleSampler(Sampler, id="sampler/next_scale"):
    """Scale by scale.

    Args:
        repredict: top-k of each further pass over a scale; None: one pass, which is exact.
        forced: where a known cell lies in a later scale than a masked one, ignore it when that one is drawn, instead
            of stopping; the output's stats then hold forced = True.
    """

    requires = NextScale
    exact = True
    marks = True

    repredict: PositiveInts | None = None
    forced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exact", self.repredict is None)
        object.__setattr__(self, "marks", self.repredict is None)

    def run(self, request: SampleRequest) -> SampleOutput:
        model, tokens, codes = request.model, request.tokens, request.tokens.codes
        cells = [side * side for side in tokens.spec.grid.sides]
        scale = torch.arange(len(cells)).repeat_interleave(torch.tensor(cells))
        forced = check_steps(tokens, scale[None], "pyramid's", self.forced)
        passes = [self, *(replace(self, top_k=k, repredict=None) for k in self.repredict or ())]
        rows = tokens.masked.flatten(1).any(1).nonzero()[:, 0]
        masked = tokens.masked[rows, 0].split(cells, 1)
        plan = [(s, i) for s, part in enumerate(masked) if bool(part.any()) for i in range(len(passes) if s else 1)]
        cache = model.init_cache(request.condition.rows(rows), len(rows)) if plan else None
        calls, fed = torch.zeros(len(codes), dtype=torch.int64, device=codes.device), 0
        for step, (s, i) in enumerate(plan, 1):
            scales = range(s if i else fed, s + 1)
            logits = model.logits(codes[rows], scales, cache, own=i > 0)
            request.network_calls.add(model, len(rows) * sum(cells[n] for n in scales))
            fed = s if i else s + 1
            drawn, own = masked[s].any(1), slice(sum(cells[:s]), sum(cells[: s + 1]))
            here, at = masked[s][drawn], rows[drawn]
            asked = passes[i].filter(logits[drawn].masked_fill(~here[..., None], 0.0))  # other cells may hold anything
            place = torch.arange(own.start, own.stop, device=codes.device)
            chosen = request.choose_at(asked, request.rng.rows(at), torch.zeros_like(place), place)
            codes[at, 0, own] = torch.where(here, chosen, codes[at, 0, own])
            calls[at] += 1
            request.report(codes, step, len(plan))
        return request.output(codes, calls, **({"forced": True} if forced else {}))
