"""MaskGIT decoding: fill all holes at once, keep what the model is confident of, mask the rest again, repeat.

Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200, section 3.2. Step i of T, for a row that began with n holes:

    x ~ p(. | what is revealed) in every hole, independently
    score = log p(x) + c (1 - i / T) Gumbel          c: choice_temperature
    the holes with the lowest scores stay masked: floor(n gamma(i / T)) of them, at least 1 before the last step and at least 1
    fewer than before

NOT a sampler of the model's law, even with one cell per step: cells are chosen after their ids were drawn, and choosing confident
ids sharpens the law. With c -> infinity the choice is random; one cell per step is then random-order sampling, which is exact for a
model with consistent conditionals. On a table of 4 cells with exact conditionals and one cell per call, the total variation distance
is 0.49 at c = 0 and 0.11 at c = 4.5 (`python tests/exact/distances.py`).

Deviations and choices: counts follow the released code (floor, at least one), not the paper's ceil. The score uses log p before
temperature and filters, so that confidence means the same whatever ids are drawn with. Each row counts its own holes; a row without
holes left leaves the batch. All levels of a multi-level grid are filled together. Known cells are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import Masked
from gentok.samplers.base import Calls, Choice, SampleOutput, Sampler, draw, initial
from gentok.tokens import Condition, Noise, Tokens

__all__ = ["SCHEDULES", "MaskGIT", "masked_counts"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
}
"""gamma(r), the share of holes that is still masked at progress r: 1 at 0, 0 at 1."""


def masked_counts(holes: Tensor, steps: int, schedule: str = "cosine") -> Tensor:
    """int64 [B, steps]: how many cells are masked after each step, for rows with `holes` int64 [B] at the start.

    Falls by at least one per step until it is 0, which it is after min(steps, holes) steps at the latest and not before the last step while
    more than one is masked.
    """
    out, masked = [], holes
    for i in range(1, steps + 1):
        # 1e-9: a share such as cos(pi/3) * 2 must not lose a whole cell to rounding
        target = (holes.double() * SCHEDULES[schedule](i / steps) + 1e-9).floor().long().clamp(min=1 if i < steps else 0)
        masked = torch.minimum(target, (masked - 1).clamp(min=0))
        out.append(masked)
    return torch.stack(out, 1)


@dataclass(frozen=True)
class MaskGIT(Sampler):
    """steps: network calls at most. schedule: one of SCHEDULES. choice_temperature: c >= 0, how much chance the choice of cells
    holds; it is annealed to 0."""

    requires = Masked
    exact = False
    any_known = True

    steps: int = 12
    schedule: str = "cosine"
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1; got {self.steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no masking schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature must be >= 0; got {self.choice_temperature}")

    @torch.no_grad()
    def __call__(
        self,
        model: Masked,
        condition: Condition,
        *,
        noise: Noise,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        self.check_model(model)
        self.no_draft(draft)
        tokens = initial(model.spec, noise, known, lengths)
        codes = tokens.codes
        begun = tokens.holes.sum((1, 2))
        counts = masked_counts(begun, self.steps, self.schedule)
        before = torch.cat([begun[:, None], counts[:, :-1]], 1)
        busy = before > 0
        calls = Calls()
        for i, everyone in enumerate(busy.all(0).tolist()):
            rows = torch.arange(len(codes), device=codes.device) if everyone else busy[:, i].nonzero()[:, 0]
            if not len(rows):
                break
            now = Tokens(codes[rows], tokens.spec, None if tokens.lengths is None else tokens.lengths[rows])
            own_noise, own_condition = (noise, condition) if everyone else (noise.rows(rows), condition.rows(rows))
            cells = (codes[rows] >= 0).sum((1, 2)) + before[rows, i]
            logits = model.logits(now, own_condition, before[rows, i] / cells)
            calls.add(model, now.codes.numel())
            codes = codes.index_copy(0, rows, self._step(now, logits, own_noise, counts[rows, i], i, choose or draw))
            if on_step is not None:
                on_step(Tokens(codes, tokens.spec, tokens.lengths), i + 1, int(busy.any(0).sum()))
        out = Tokens(codes, tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, busy.sum(1), dict(calls))

    def _step(self, tokens: Tokens, logits: Tensor, noise: Noise, masked: Tensor, i: int, choose: Choice) -> Tensor:
        """codes int64 [B, K, N] after step i (from 0), in which all but `masked` int64 [B] of each row's holes were filled."""
        holes = tokens.holes
        logits = logits.masked_fill(~holes[..., None], 0.0)  # the rows of known cells are unspecified
        ids = choose(self.filter(logits), noise)
        gumbel = noise.gumbel(*holes.shape[1:])
        score = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        score = score + self.choice_temperature * (1 - (i + 1) / self.steps) * gumbel
        rank = score.masked_fill(~holes, torch.inf).flatten(1).argsort(dim=1, stable=True).argsort(1).view_as(holes)
        return torch.where(holes & (rank >= masked[:, None, None]), ids, tokens.codes)
