"""MaskGIT decoding: fill all masked cells at once, keep what the model is confident of, mask the rest again,
repeat.

Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200, section 3.2. Step i of T, for
a row that began with n masked cells:

    x ~ p(. | what is revealed) in every masked cell, independently
    score = log p(x) + c (1 - i / T) Gumbel          c: choice_temperature
    the cells with the lowest scores stay masked: floor(n gamma(i / T)) of them, at least 1 before the last
    step and at least 1 fewer than before

NOT a sampler of the model's distribution, even with one cell per step: cells are chosen after their ids were
drawn, and choosing confident ids sharpens the distribution. With c -> infinity the choice is random; one cell
per step is then random-order sampling, which is exact for a model with consistent conditionals. On a table of
4 cells with exact conditionals and one cell per call, the total variation distance is 0.49 at c = 0 and 0.11
at c = 4.5 (`python tests/exact/distances.py`).

Deviations and choices: counts follow the released code (floor, at least one), not the paper's ceil. The score
uses log p before temperature and filters, so that confidence means the same whatever ids are drawn with. Each
row counts its own masked cells; a row without any left leaves the batch. All levels of a multi-level grid are
filled together. Known cells are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gentok.generators.base import Masked
from gentok.samplers.stepwise import StepState, StepwiseSampler

__all__ = ["MaskGIT"]


@dataclass(frozen=True)
class MaskGIT(StepwiseSampler, id="sampler/maskgit"):
    """MaskGIT's decoding; for its settings see StepwiseSampler."""

    requires = Masked

    def step(self, state: StepState) -> Tensor:
        request, tokens = state.request, state.request.tokens
        left = tokens.masked.sum((1, 2))
        logits = request.model.logits(tokens, request.condition, left / (tokens.present.sum((1, 2)) + left))
        request.network_calls.add(request.model, tokens.codes.numel())
        logits = logits.masked_fill(~state.masked[..., None], 0.0)  # the logits of known cells are unspecified
        ids = request.choose(self.filter(logits), request.rng)
        score = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return ids.where(self.kept(score, state), tokens.codes)
