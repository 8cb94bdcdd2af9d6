"""From Gaussian noise to a codeword by a flow that is known in closed form (Liu et al., Distilled Decoding, arXiv 2412.17153, section 3.1).

The data are codewords c_j with probabilities p_j: the distribution sum_j p_j delta(c_j). On the straight path x_t = (1 - t) c + t eps
(gentok/flow/path.py: data at t = 0, noise at t = 1) a point tells which codeword it leads to,

    w_j(x, t) = p_j N(x; (1 - t) c_j, t^2 I) / sum_k ...,        E[v | x_t = x] = (x - sum_j w_j c_j) / t

and following this mean velocity from noise to data carries the normal distribution to p: a deterministic map from noise to a code that has
the distribution p. No network takes part. At t = 1 the weights are p, at t = 0 they are those of the nearest possible codeword.

The equation is solved on a grid of times, so the distribution is that of p up to an error that vanishes with the number of steps. The
last step is none: the code is the one of the largest weight at the last time before 0, which no codeword of probability 0 ever has.

The same weights give the score of the distribution of x_t, which distilled decoding 2 (arXiv 2510.21003) compares:

    score(x, t) = grad log sum_j p_j N(x; (1 - t) c_j, t^2 I) = -(x - (1 - t) sum_j w_j c_j) / t^2

Deviation: the paper snaps the solution to the nearest codeword, which may be one that is impossible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentok.errors import check_choice
from gentok.flow.path import score_of
from gentok.flow.solvers import SOLVERS, time_grid
from gentok.precision import no_autocast

__all__ = ["DETERMINISTIC", "CodewordFlow"]

DETERMINISTIC = ("euler", "midpoint", "heun")
"""Solvers that draw nothing."""


class CodewordFlow:
    """The map from noise to codes.

    Args:
        codewords: float [V, C], in coordinates of about unit variance, in which noise is normal too.
        steps: of the solver, at least 2; the last one is taken by choosing a code.
        solver: one of DETERMINISTIC.
        shift: of the times, > 0 (gentok.flow.solvers.time_grid): above 1 steps are shorter near the noise, where it is decided which
            codeword a point leads to.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, codewords: Tensor, steps: int = 16, solver: str = "heun", shift: float = 1.0):
        check_choice("solver", solver, DETERMINISTIC)
        if steps < 2:
            raise ValueError(f"steps={steps} of the flow from noise to codewords: give at least 2, of which the last chooses the code")
        self.codewords, self.times, self._solver = codewords, time_grid(steps, shift=shift), SOLVERS[solver]()
        self._squares = 0.5 * codewords.square().sum(1)

    def log_weights(self, x: Tensor, t: float | Tensor, logits: Tensor) -> Tensor:
        """Which codewords points may lead to.

        Args:
            x: float [..., C], points of time t in (0, 1].
            t: that time, or float [..., 1].
            logits: of p, float [..., V].

        Returns:
            float [..., V]: log w up to a constant.
        """
        near = (1 - t) / t**2
        return torch.addcmul(logits, torch.as_tensor(near).to(logits), x @ self.codewords.T - (1 - t) * self._squares)

    def mean(self, x: Tensor, t: float | Tensor, logits: Tensor) -> Tensor:
        """The mean of the codewords that points may lead to, float [..., C]; arguments as of `log_weights`."""
        return self.log_weights(x, t, logits).softmax(-1) @ self.codewords

    def velocity(self, x: Tensor, t: float | Tensor, logits: Tensor) -> Tensor:
        """The mean velocity at points, float [..., C]; arguments as of `log_weights`."""
        return (x - self.mean(x, t, logits)) / t

    def score(self, x: Tensor, t: float | Tensor, logits: Tensor) -> Tensor:
        """The gradient of the log density of points, float [..., C]; arguments as of `log_weights`."""
        return score_of(x, self.velocity(x, t, logits), t)

    def __call__(self, noise: Tensor, logits: Tensor) -> Tensor:
        """Carries noise to codes.

        Args:
            noise: float [..., C], standard normal.
            logits: of p, float [..., V]; -inf where a code is impossible.

        Returns:
            int64 [...]: the codes, computed in the type of the codewords.
        """
        with no_autocast(noise.device):
            noise, logits = noise.to(self.codewords), logits.to(self.codewords)
            x = self._solver(lambda x, t: self.velocity(x, t, logits), noise, self.times[:-1])
            return self.log_weights(x, self.times[-2], logits).argmax(-1)
