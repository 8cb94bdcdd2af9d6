"""One or two passes in the place of a pass per code: distilled decoding (Liu et al., arXiv 2412.17153).

Every row draws its noise once. One pass maps the noise of all positions to codes. With two, the codes before `split` are kept, the noise
behind them is put back, and a second pass maps it again, which now sees codes in the place of noise. With `assist` the model's teacher
gives the codes of a span, a call each, from the same noise: of all positions these are exactly the teacher's, of some the student's
passes go on from its last code.

Only approximately the model's teacher's distribution, unless `assist` is everything. Known codes stay where they precede all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentok.generators.base import Jumps
from gentok.samplers.base import Sampler, check_steps
from gentok.samplers.draws import check_finite
from gentok.samplers.request import SampleOutput, SampleRequest
from gentok.settings import NonNegativeInt
from gentok.types import UNKNOWN

__all__ = ["DistilledSampler"]


@dataclass(frozen=True)
class DistilledSampler(Sampler, id="sampler/distilled"):
    """Passes of a student from noise to codes.

    Args:
        steps: 1 or 2 passes over an item, without those that `assist` needs.
        assist: [first, last): positions whose codes the teacher gives, a call each; None: none. The student was trained to go on from its
            `split`: a span should end there, or be everything.
        draw: whether the student's codes are drawn, as temperature and the filters say; else they are the most probable ones, since the
            noise is what differs from item to item. The teacher's are the map's.
    """

    requires = Jumps
    exact = False

    steps: Literal[1, 2] = 1
    assist: Sequence[NonNegativeInt] | None = None
    draw: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assist is not None and (len(self.assist) != 2 or not self.assist[0] < self.assist[1]):
            raise ValueError(
                f"assist={list(self.assist)}: the first position that the teacher gives, and the one behind the last, such as [0, 16]"
            )

    def run(self, request: SampleRequest) -> SampleOutput:
        """As Sampler. calls: passes of the student and of the teacher that a row needed; network_calls: student and teacher."""
        model, tokens, codes = request.model, request.tokens, request.tokens.codes
        positions = codes.shape[2]
        check_steps(tokens, torch.arange(positions)[None], "left to right")
        span = range(*self.assist) if self.assist else range(0)
        if span.stop > positions:
            raise ValueError(
                f"assist=[{span.start}, {span.stop}]: these items have {positions} positions, so a span ends at {positions} at most"
            )
        noise = request.rng.normal(positions, model.channels)
        calls, parts = codes.new_zeros(len(codes)), self._parts(model.split, span, positions)
        for number, part in enumerate(parts):
            asked = codes[:, 0, part.start : part.stop] == UNKNOWN
            if part == span and bool(asked.any()):
                first = part.start + int(asked.any(0).nonzero()[0])
                codes = model.follow(codes, noise, request.condition, range(first, part.stop))
                calls = calls + asked.sum(1)
                request.network_calls.merge({"teacher": (part.stop - first, (part.stop - first) * len(codes))})
            elif bool(asked.any()):
                drawn = self._codes(request, model.jump(codes, noise, request.condition))
                before = torch.arange(positions, device=codes.device) < part.stop
                codes = torch.where((codes == UNKNOWN) & before, drawn, codes)
                calls = calls + asked.any(1)
                request.network_calls.merge({"student": (1, positions * len(codes))})
            request.report(codes, number + 1, len(parts))
        return request.output(codes, calls)

    def _codes(self, request: SampleRequest, logits: Tensor) -> Tensor:
        """logits float [B, 1, N, V] -> int64 [B, 1, N]."""
        if self.draw:
            return request.choose(self.filter(logits), request.rng)
        check_finite(logits.amax(-1), request.rng, "distribution")
        return logits.argmax(-1)

    def _parts(self, split: int, span: range, positions: int) -> list[range]:
        """What is filled one after the other: `span` by the teacher, the others by a pass each."""
        ends = {positions, *((split,) if self.steps == 2 else ())}
        if not span:
            cuts = sorted({0, *ends})
        else:
            cuts = sorted({0, span.start, span.stop, *(e for e in ends if e not in span or e == span.start)})
        return [range(first, last) for first, last in zip(cuts, cuts[1:])]
