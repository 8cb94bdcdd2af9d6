"""Remasking diffusion (ReMDM): ancestral steps that also hide again, so that what was drawn too early can be drawn anew.

Wang et al., "Remasking Discrete Diffusion Models with Inference-Time Scaling", arXiv 2503.00307. Step t -> s, with alpha = 1 - m:

    a revealed cell is hidden with probability sigma
    a hole is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), and drawn from the network's law

For any sigma up to sigma_max = min(1, (1 - alpha_s) / alpha_t) a cell is revealed at s with probability alpha_s, as without remasking: the
two-time marginals are those of the reverse process. The strategies choose sigma:

    cap                min(eta, sigma_max)
    rescale            eta sigma_max
    conf               sigma_max times a softmax over the row's revealed cells of minus the probability with which each was drawn; holes are
                       revealed as if sigma were 0 (as in the released code), so fewer than alpha_s are revealed until the last step
    loop               plain ancestral steps until t_on, where alpha is alpha_on; steps that keep alpha there, remasking eta sigma_max,
                       until t_off; plain steps to the end
    forward_backward   (alpha_s - alpha_t) / alpha_t, at most sigma_max: the forward-backward corrector as a special case

An approximation: a step's cells are drawn as if independent, given cells of which some were hidden at the same time. Known cells are
never hidden. The last step reveals everything. Rows are computed only in the steps in which they reveal something.

Choice: conf weighs by the probability under the model's own (guided) law, before temperature and filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.flow.absorbing import mask_schedule
from gentok.samplers.unmasking import Unmasking, UnmaskingSampler
from gentok.types import UNKNOWN

__all__ = ["STRATEGIES", "Remasking", "Step"]

STRATEGIES = ("cap", "rescale", "conf", "loop", "forward_backward")


@dataclass(frozen=True)
class Step:
    """One step of time: alpha before and after, and sigma (for conf: sigma_max, to be shared out)."""

    before: float
    after: float
    sigma: float

    @property
    def reveal(self) -> float:
        """The probability that a hole is revealed."""
        if self.before == 1:
            return 1.0
        return min(1.0, max(0.0, (self.after - (1 - self.sigma) * self.before) / (1 - self.before)))


@dataclass(frozen=True)
class Remasking(UnmaskingSampler, id="sampler/remasking"):
    """strategy: one of STRATEGIES; eta in [0, 1] (cap, rescale, loop); steps of time; schedule: of the masked share (flow/absorbing.py),
    not for loop, whose alpha runs in straight lines through (t_on, alpha_on) and (t_off, alpha_on)."""

    strategy: str = "cap"
    eta: float = 0.02
    steps: int = 128
    schedule: str = "linear"
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1; got {self.steps}")
        if not 0 < self.t_off < self.t_on < 1 or not 0 < self.alpha_on < 1:
            raise ValueError(f"the loop needs 0 < t_off < t_on < 1 and alpha_on in (0, 1); got {self.t_off}, {self.t_on}, {self.alpha_on}")
        mask_schedule(self.schedule)

    def _alphas(self) -> list[float]:
        if self.strategy != "loop":
            return [1 - m for m in mask_schedule(self.schedule).grid(self.steps)]

        def alpha(t: float) -> float:
            if t > self.t_on:
                return self.alpha_on * (1 - t) / (1 - self.t_on)
            return self.alpha_on if t > self.t_off else 1 - (1 - self.alpha_on) * t / self.t_off

        return [alpha(1 - i / self.steps) for i in range(self.steps)] + [1.0]

    def plan(self) -> list[Step]:
        """The steps, first to last."""
        alphas = self._alphas()
        out = []
        for before, after in zip(alphas, alphas[1:]):
            most = min(1.0, (1 - after) / before) if before > 0 else 1.0
            if self.strategy == "cap":
                sigma = min(self.eta, most)
            elif self.strategy == "rescale":
                sigma = self.eta * most
            elif self.strategy == "conf":
                sigma = most
            elif self.strategy == "loop":
                sigma = self.eta * most if before == after else 0.0
            else:
                sigma = min(most, (after - before) / before) if before > 0 else most
            out.append(Step(before, after, sigma))
        return out

    def fill(self, filling: Unmasking) -> None:
        live = filling.rows(filling.begun > 0)
        free = filling.free[live]
        sure = torch.zeros(free.shape, dtype=torch.float64, device=free.device)  # the probability of each drawn id when it was drawn
        for i, step in enumerate(self.plan() if len(live) else []):
            masked_cells = filling.masked(live)
            chance = self._chances(step, masked_cells, free & ~masked_cells, sure)
            change = filling.streams(live).uniform(*free.shape[1:]) < chance
            reveal, hide = change & masked_cells, change & free & ~masked_cells
            at = reveal.flatten(1).any(1).nonzero()[:, 0]
            if len(at):
                rows = live[at]
                logits = filling.predict(
                    rows, filling.told(torch.full((len(rows),), 1 - step.before, dtype=torch.float64, device=rows.device), rows)
                )
                filling.fill(rows, logits, reveal[at])
                if self.strategy == "conf":
                    log_p = logits.double().masked_fill(~reveal[at][..., None], 0.0).log_softmax(-1)
                    p = log_p.gather(3, filling.codes[rows].clamp(min=0)[..., None])[..., 0].exp()
                    sure[at] = torch.where(reveal[at], p, sure[at])
            filling.codes[live] = filling.codes[live].masked_fill(hide, UNKNOWN)
            filling.step(i + 1, self.steps)

    def _chances(self, step: Step, masked_cells: Tensor, shown: Tensor, sure: Tensor) -> Tensor:
        """float64 [b, K, N]: the probability that a hole is revealed, or a revealed cell (bool `shown`) hidden."""
        if self.strategy != "conf":
            return torch.where(masked_cells, step.reveal, step.sigma)
        plain = Step(step.before, step.after, 0.0).reveal
        share = (-sure).masked_fill(~shown, -torch.inf).flatten(1).softmax(1).nan_to_num(0.0).view_as(sure)
        return torch.where(masked_cells, plain, step.sigma * share)
