"""What float32 noise makes of a distribution: the closed form of a Gumbel (or exponential) race whose noise
is cut off.

Zheng et al., arXiv 2409.02908, section 5. A uniform number on the grid j / 2^bits is at most 1 - 2^-bits, so
a Gumbel made of it is at most M = -log(-log(1 - 2^-bits)): 16.6 in float32, 36.7 in float64. In terms of the
race argmin E_i / p_i the exponentials E are at least c = exp(-M), so id i starts late, at c / p_i, and the
rare ones lose to those that started before. With p sorted ascending, S_k the sum of p_k ... p_n, and p_0 = 0:

    beta_k = (exp(c (n - k + 1 - S_k / p_k)) - exp(c (n - k + 1 - S_k / p_(k-1)))) / S_k
    p'_k = p_k sum of beta_1 ... beta_k

The factor grows with p: the distribution is sharpened, as by a temperature below 1. Drawing ids of an
ordinary distribution loses little. But a masked diffusion that lets "stay masked" race against V ids has, in
T steps, one dominant competitor and ids of probability p / T: with more steps the samples lose their rare
ids, and look better by any measure that does not see diversity. `masked_race` follows that through all steps.

The closed form takes E as continuous above c. Numbers that are rounded down to the grid, as torch.rand's in
float32, start late by c but catch up with every tick: their distribution lies between, nearly where the
closed form is with one bit more (tests/metrics/test_truncation.py has the exact distribution of the grid for
small cases).

gentok draws with one uniform number of 52 bits against a float64 cumulative sum, and decides whether a cell
is revealed apart from its id (samplers/ancestral.py): nothing of this happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["entropy", "gumbel_cap", "masked_race", "truncated_race"]


def gumbel_cap(bits: int = 24) -> float:
    """M: the largest Gumbel number that uniform numbers with so many bits can give."""
    return -math.log(-math.log1p(-(2.0**-bits)))


def entropy(p: np.ndarray) -> float:
    """Nats of a distribution; 0 log 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def truncated_race(p: np.ndarray, bits: int = 24) -> np.ndarray:
    """The distribution of the winner of a race with cut-off noise.

    Args:
        p: float64 [n], a distribution.
        bits: of the uniform numbers.

    Returns:
        float64 [n]; ids of probability 0 stay there.

    Raises:
        ValueError: p is no distribution.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not len(p) or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"a distribution of one axis that sums to 1 is needed; got shape {p.shape} with sum {p.sum():.6f}")
    c = math.exp(-gumbel_cap(bits))
    order = np.argsort(p, kind="stable")
    order = order[p[order] > 0]
    q = p[order]
    tails = np.cumsum(q[::-1])[::-1]
    slow = np.append(np.inf, 1 / q[:-1])  # 1 / p_(k-1)
    count = np.arange(len(q), 0, -1)
    # exp(a) (1 - exp(-b)) with a = c (count - S / p_k), b = c S (1 / p_(k-1) - 1 / p_k): no difference of near equals
    beta = np.exp(c * (count - tails / q)) * -np.expm1(-c * tails * (slow - 1 / q)) / tails
    out = np.zeros_like(p)
    out[order] = q * np.cumsum(beta)
    return out


def masked_race(p: np.ndarray, steps: Sequence[int], bits: int = 24) -> dict[int, np.ndarray]:
    """The distribution of a cell after ancestral steps in which "stay masked" and all ids race with cut-off
    noise (MDLM's sampler, linear schedule: with n steps to go, a masked position is revealed with probability
    1 / n).

    Costs max(steps) evaluations of `truncated_race`.

    Args:
        p: float64 [V], the distribution of a cell.
        steps: numbers of steps T.
        bits: of the uniform numbers.

    Returns:
        {T: float64 [V]}.
    """
    p = np.asarray(p, dtype=np.float64)
    masked = dict.fromkeys(steps, 1.0)
    revealed = {t: np.zeros_like(p) for t in steps}
    for n in range(max(steps), 0, -1):
        winner = truncated_race(np.append(p / n, 1 - 1 / n), bits)
        for t in steps:
            if n <= t:
                revealed[t] += masked[t] * winner[:-1]
                masked[t] *= winner[-1]
    return revealed
