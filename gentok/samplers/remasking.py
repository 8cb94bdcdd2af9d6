"""Remasking diffusion (ReMDM): ancestral steps that also mask again, so that what was drawn too early can be
drawn anew.

Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", arXiv 2503.00307. Step t -> s,
with alpha = 1 - m:

    a revealed cell is masked again with probability sigma
    a masked cell is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), and then drawn

For any sigma up to sigma_max = min(1, (1 - alpha_s) / alpha_t) a cell is revealed at s with probability
alpha_s, as without remasking: the two-time marginals are those of the reverse process. The strategies choose
sigma:

    cap                min(eta, sigma_max)
    rescale            eta sigma_max
    conf               sigma_max times a softmax over the row's revealed cells of minus the probability with
                       which each was drawn; cells are revealed as if sigma were 0 (as in the released code),
                       so fewer than alpha_s are revealed until the last step
    loop               plain ancestral steps until t_on, where alpha is alpha_on; steps that keep alpha there,
                       remasking eta sigma_max, until t_off; plain steps to the end
    forward_backward   (alpha_s - alpha_t) / alpha_t, at most sigma_max: the forward-backward corrector as a
                       special case

An approximation: a step's cells are drawn as if independent, given cells of which some were masked again at
the same time. Known cells are never masked. The last step reveals everything. Rows are computed only in the
steps in which they reveal something.

Choice: conf weighs by the probability under the model's own (guided) distribution, before temperature and
filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.absorbing import mask_schedule
from gentok.samplers.base import setting
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import Fraction, NonNegativeFloat, PositiveInt
from gentok.types import UNKNOWN

__all__ = ["STRATEGIES", "Remasking", "Step"]

STRATEGIES = ("cap", "rescale", "conf", "loop", "forward_backward")


@dataclass(frozen=True)
class Step:
    """One step of time.

    Attributes:
        before: alpha before the step.
        after: alpha after it.
        sigma: the probability of masking again (for conf: sigma_max, which is shared among the cells).
    """

    before: float
    after: float
    sigma: float

    @property
    def reveal(self) -> float:
        """The probability that a masked cell is revealed."""
        if self.before == 1:
            return 1.0
        return min(1.0, max(0.0, (self.after - (1 - self.sigma) * self.before) / (1 - self.before)))


@dataclass(frozen=True)
class Remasking(UnmaskingSampler, id="sampler/remasking"):
    """Masked diffusion in steps of time that mask again.

    Args:
        strategy: one of STRATEGIES.
        eta: how much is masked again, in [0, 1] (cap, rescale, loop).
        steps: of time, >= 1.
        schedule: of the masked share (flow/absorbing.py), for all but loop, whose alpha runs in straight
            lines through (t_on, alpha_on) and (t_off, alpha_on).
        t_on: loop: the time from which on cells are masked again; times run from 1 to 0.
        t_off: loop: the time at which that ends, below t_on.
        alpha_on: loop: the share that is revealed meanwhile, in (0, 1).
    """

    strategy: str = setting("cap", choices=STRATEGIES)
    eta: Fraction = 0.02
    revises = True
    marks = False

    steps: PositiveInt = 128
    schedule: str = setting("linear", parse=mask_schedule)
    t_on: NonNegativeFloat = 0.55
    t_off: NonNegativeFloat = 0.05
    alpha_on: NonNegativeFloat = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.t_off < self.t_on < 1 or not 0 < self.alpha_on < 1:
            raise ValueError(f"the loop needs 0 < t_off < t_on < 1 and alpha_on in (0, 1); got {self.t_off}, {self.t_on}, {self.alpha_on}")

    def _alphas(self) -> list[float]:
        if self.strategy != "loop":
            return [1 - m for m in mask_schedule(self.schedule).grid(self.steps)]

        def alpha(t: float) -> float:
            if t > self.t_on:
                return self.alpha_on * (1 - t) / (1 - self.t_on)
            return self.alpha_on if t > self.t_off else 1 - (1 - self.alpha_on) * t / self.t_off

        return [alpha(1 - i / self.steps) for i in range(self.steps)] + [1.0]

    def _sigma(self, before: float, after: float) -> float:
        most = min(1.0, (1 - after) / before) if before > 0 else 1.0
        if self.strategy == "cap":
            return min(self.eta, most)
        if self.strategy == "forward_backward" and before > 0:
            return min(most, (after - before) / before)
        if self.strategy == "rescale" or (self.strategy == "loop" and before == after):
            return self.eta * most
        return 0.0 if self.strategy == "loop" else most

    def plan(self) -> list[Step]:
        """The steps, first to last."""
        alphas = self._alphas()
        return [Step(before, after, self._sigma(before, after)) for before, after in zip(alphas, alphas[1:])]

    def unmask(self, state: UnmaskingState) -> None:
        live = state.n_free.nonzero()[:, 0]
        free = state.free[live]
        sure = torch.zeros(free.shape, dtype=torch.float64, device=free.device)  # the probability of each drawn id when it was drawn
        for i, step in enumerate(self.plan() if len(live) else []):
            masked = state.masked(live)
            chance = self._chances(step, masked, free & ~masked, sure)
            change = state.rng.rows(live).uniform(*free.shape[1:]) < chance
            reveal, hide = change & masked, change & free & ~masked
            at = reveal.flatten(1).any(1).nonzero()[:, 0]
            if len(at):
                rows = live[at]
                logits = state.predict(rows, state.time_at(1 - step.before, rows))
                state.reveal(rows, logits, reveal[at])
                if self.strategy == "conf":
                    log_p = logits.double().masked_fill(~reveal[at][..., None], 0.0).log_softmax(-1)
                    p = log_p.gather(3, state.codes[rows].clamp(min=0)[..., None])[..., 0].exp()
                    sure[at] = torch.where(reveal[at], p, sure[at])
            state.codes[live] = state.codes[live].masked_fill(hide, UNKNOWN)
            state.report(i + 1, self.steps)

    def _chances(self, step: Step, masked: Tensor, revealed: Tensor, sure: Tensor) -> Tensor:
        """float64 [b, K, N]: the probability that a masked cell is revealed, or a revealed one masked
        again."""
        if self.strategy != "conf":
            return torch.where(masked, step.reveal, step.sigma)
        plain = Step(step.before, step.after, 0.0).reveal
        share = (-sure).masked_fill(~revealed, -torch.inf).flatten(1).softmax(1).nan_to_num(0.0).view_as(sure)
        return torch.where(masked, plain, step.sigma * share)
