"""ResGen's decoding: draw what is hidden at every position as one vector, quantise it, keep what the model is confident of, repeat.

Kim et al., "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", arXiv 2412.10208, ICML 2025. Step i of T:

    component m ~ softmax(logits), filtered;  z ~ N(mean_m, vector temperature * var_m I)          at every position with holes
    codes = the codebook's own quantisation of z by the hidden levels
    score of a hole = confidence of its position + c (1 - i / T) Gumbel,   one Gumbel number per hole
    the holes with the highest scores are counted per position, and each position keeps so many of its holes, the shallowest first;
    floor(n gamma(i / T)) of a row's n holes stay masked (as in MaskGIT)

All levels of a position come from one vector, so the number of calls is `steps` for any number of levels. Where chance alone chooses
(c -> infinity), how many levels a position keeps follows the multivariate hypergeometric law that the model was trained on.

Confidence is log p(z) under the mixture, before temperature and filters, in coordinates where the position's hidden sum has unit variance:
positions of which only fine levels are left are then not surer than others by their scale alone. The paper speaks of log-probabilities and
leaves their units open.

NOT a sampler of the model's law: positions are drawn independently, cells are chosen after their codes were drawn, and a vector is
quantised to the nearest row. Each row counts its own holes; a row without holes left leaves the batch. Known cells are never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.generators.base import CumulativeMasked
from gentok.samplers.base import Calls, Choice, SampleOutput, Sampler, draw, initial
from gentok.samplers.maskgit import SCHEDULES, masked_counts
from gentok.tokens import Condition, Noise, Tokens

__all__ = ["ResGenSampler", "shallowest"]


def shallowest(holes: Tensor, wanted: Tensor) -> Tensor:
    """holes, wanted bool [B, K, N], wanted only holes -> bool [B, K, N]: as many holes of each position as wanted, the shallowest."""
    return holes & (holes.cumsum(1) <= wanted.sum(1, keepdim=True))


@dataclass(frozen=True)
class ResGenSampler(Sampler):
    """steps: network calls at most. schedule: one of maskgit's SCHEDULES. choice_temperature: c >= 0, how much chance the choice of cells
    holds; it is annealed to 0. temperature and the filters act on the components' weights; vector_temperature >= 0: of the vector inside
    its component, None for that of the components."""

    requires = CumulativeMasked
    exact = False
    any_known = True

    steps: int = 16
    schedule: str = "cosine"
    choice_temperature: float = 4.5
    vector_temperature: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1; got {self.steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no masking schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        for name in ("choice_temperature", "vector_temperature"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)}")

    @torch.no_grad()
    def __call__(
        self,
        model: CumulativeMasked,
        condition: Condition,
        *,
        noise: Noise,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        """As Sampler.__call__; `choose` draws components from their filtered logits."""
        self.check_model(model)
        self.no_draft(draft)
        tokens = initial(model.spec, noise, known, lengths)
        codes = tokens.codes
        begun = tokens.holes.sum((1, 2))
        counts = masked_counts(begun, self.steps, self.schedule)
        busy = torch.cat([begun[:, None], counts[:, :-1]], 1) > 0
        calls = Calls()
        for i, everyone in enumerate(busy.all(0).tolist()):
            rows = torch.arange(len(codes), device=codes.device) if everyone else busy[:, i].nonzero()[:, 0]
            if not len(rows):
                break
            now = Tokens(codes[rows], tokens.spec, None if tokens.lengths is None else tokens.lengths[rows])
            own_noise, own_condition = (noise, condition) if everyone else (noise.rows(rows), condition.rows(rows))
            step = self._step(model, now, own_condition, own_noise, counts[rows, i], i, choose or draw)
            calls.add(model, len(rows) * codes.shape[2])
            codes = codes.index_copy(0, rows, step)
            if on_step is not None:
                on_step(Tokens(codes, tokens.spec, tokens.lengths), i + 1, int(busy.any(0).sum()))
        out = Tokens(codes, tokens.spec, tokens.lengths).validate()
        return SampleOutput(out, busy.sum(1), dict(calls))

    def _step(
        self, model: CumulativeMasked, tokens: Tokens, condition: Condition, noise: Noise, masked: Tensor, i: int, choose: Choice
    ) -> Tensor:  # fmt: skip
        """codes int64 [B, K, N] after step i (from 0), in which all but `masked` int64 [B] of each row's holes were filled."""
        holes = tokens.holes
        mixture = model.mixture(tokens, condition)
        component = choose(self.filter(mixture.logits), noise)
        z = mixture.draw(component, noise, self.temperature if self.vector_temperature is None else self.vector_temperature)
        filled = model.requantize(z, tokens).codes
        confidence = mixture.width * mixture.unit.double().log() - mixture.nats(z).double()
        score = confidence[:, None] + self.choice_temperature * (1 - (i + 1) / self.steps) * noise.gumbel(*holes.shape[1:])
        rank = score.masked_fill(~holes, torch.inf).flatten(1).argsort(dim=1, stable=True).argsort(1).view_as(holes)
        kept = shallowest(holes, holes & (rank >= masked[:, None, None]))
        return torch.where(kept, filled, tokens.codes)
