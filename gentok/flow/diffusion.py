"""Gaussian diffusion in steps, with learned variances (Ho et al., arXiv 2006.11239; Nichol and Dhariwal, arXiv 2102.09672).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,     a_t = product of (1 - b_i), i <= t,     b_t = min(1 - c(t + 1) / c(t), 0.999)
    c(i) = cos^2((i / T + 0.008) / 1.008 * pi / 2)                                        the cosine schedule, T = 1000
    log variance of x_t-1 given x_t = share * log b_t + (1 - share) * log(b_t (1 - a_t-1) / (1 - a_t)),   share = (v + 1) / 2

A network gives eps and v. Sampling may take fewer steps, spread evenly over the T; b is then that of the steps taken.

    loss = mean over numbers of |eps - network|^2 + KL(x_t-1 given x_t and x_0 | the network's) in bits, in which eps is not trained

Deviation: at t = 0, where there is no KL, the release has the bits of x_0 in bins of 1 / 127.5, as if it were a pixel; here it is the
density of x_0, in bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gentok.rng import RowRNG

__all__ = ["STEPS", "diffusion_loss", "noised", "reverse", "signal_shares", "spaced"]

STEPS = 1000
"""T, of training."""
Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(x float [..., C], t) -> eps and v, float [..., C] each."""


@functools.cache
def signal_shares() -> Tensor:
    """float64 [T]: a_t, the share of x_t's variance that is the data's."""
    share = [math.cos((i / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(STEPS + 1)]
    with torch.device("cpu"):
        b = torch.tensor([min(1 - after / before, 0.999) for before, after in zip(share, share[1:])], dtype=torch.float64)
    return (1 - b).cumprod(0)


def spaced(steps: int) -> list[int]:
    """The times of a sampling in so many steps, rising from 0 to T - 1. Raises ValueError on fewer than 2 or more than T."""
    if not 2 <= steps <= STEPS:
        raise ValueError(f"a diffusion is sampled in 2 to {STEPS} steps; got {steps}")
    return [round(i * (STEPS - 1) / (steps - 1)) for i in range(steps)]


def _coefficients(times: list[int]) -> tuple[Tensor, ...]:
    """Of the S times that are taken, float64 [S] each: a; weights of x_0 and x_t in the mean of x_t-1; log b, and the log of the smallest
    variance, at the first time that of the second."""
    a = signal_shares()[times]
    before = torch.cat((a.new_ones(1), a[:-1]))
    b = 1 - a / before
    variance = b * (1 - before) / (1 - a)
    smallest = torch.cat((variance[1:2], variance[1:])).log()
    return a, b * before.sqrt() / (1 - a), (1 - before) * (1 - b).sqrt() / (1 - a), b.log(), smallest


def noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t: x and noise float [M, C], t int64 [M] in 0..T-1 -> float [M, C]."""
    a = signal_shares().to(t.device)[t].to(x)[:, None]
    return a.sqrt() * x + (1 - a).sqrt() * noise


def diffusion_loss(eps: Tensor, v: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The loss of each vector.

    Args:
        eps: of the network at x_t, float [M, C].
        v: likewise.
        x: x_0, float [M, C].
        noise: float [M, C].
        t: int64 [M].

    Returns:
        float [M].
    """
    a, of_x, of_noisy, largest, smallest = (part.to(t.device)[t].to(x)[:, None] for part in _coefficients(list(range(STEPS))))
    noisy = a.sqrt() * x + (1 - a).sqrt() * noise
    guess = (noisy - (1 - a).sqrt() * eps.detach()) / a.sqrt()
    log_variance = smallest + (v + 1) / 2 * (largest - smallest)
    off = (of_x * (x - guess)).square() * (-log_variance).exp()  # of the two means, which differ in x_0 alone
    kl = 0.5 * (off - 1 + log_variance - smallest + (smallest - log_variance).exp())
    off_data = (x - of_x * guess - of_noisy * noisy).square() * (-log_variance).exp()
    density = 0.5 * (off_data + log_variance + math.log(2 * math.pi))
    bits = torch.where(t[:, None] == 0, density, kl).mean(1) / math.log(2)
    return (eps - noise).square().mean(1) + bits


def reverse(denoiser: Denoiser, x: Tensor, steps: int, temperature: float, rng: RowRNG, clip: float | None = None) -> Tensor:
    """Draws x_0.

    Args:
        denoiser: the network.
        x: noise, float [B, n, C].
        steps: how many are taken.
        temperature: of the noise that the steps add: its standard deviation.
        rng: of B rows.
        clip: the largest number that x_0 is taken for on the way; None: any.

    Returns:
        float [B, n, C].
    """
    times = spaced(steps)
    for step, (a, of_x, of_noisy, largest, smallest) in reversed(list(enumerate(zip(*(c.tolist() for c in _coefficients(times)))))):
        eps, v = denoiser(x, times[step])
        guess = x / a**0.5 - (1 / a - 1) ** 0.5 * eps
        guess = guess if clip is None else guess.clamp(-clip, clip)
        x = of_x * guess + of_noisy * x
        if step:
            log_variance = smallest + (v + 1) / 2 * (largest - smallest)
            x = x + (0.5 * log_variance).exp() * temperature * rng.normal(*x.shape[1:]).to(x)
    return x
