"""Entropy-bounded unmasking: as many cells per call as can depend on each other by at most gamma nats.

Ben-Hamu et al., "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking", arXiv
2505.24857. In every call the masked cells are ordered by how certain the network is of them, and the largest
prefix U with

    sum over U of H_i - max over U of H_i <= gamma

is revealed, at least one cell. The left side bounds the dependence (the Kullback-Leibler divergence of the
joint distribution of U from the product of its marginals) that is lost when U is drawn as if independent.

An approximation for gamma > 0. With gamma = 0 (or limit = 1) it reveals one cell per call, and certain ones:
which, depends on what was revealed before and not on the ids to be drawn. That is exact for a model whose
conditionals agree.

Choice: entropies and order are those of the model's own (guided) distribution, before temperature and
filters, so that temperature = 0 makes the samples and not the speed greedy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.base import setting
from gentok.samplers.unmasking import UnmaskingSampler, UnmaskingState
from gentok.settings import NonNegativeFloat, PositiveInt

__all__ = ["ORDERS", "EntropyBounded", "entropies", "uncertainty"]

ORDERS = ("entropy", "confidence", "margin")


def entropies(log_p: Tensor) -> Tensor:
    """Normalised log-probabilities, float64 [..., V] -> entropies in nats [...]."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def uncertainty(log_p: Tensor, by: str) -> Tensor:
    """A score [...] that is lowest where the distribution is most certain.

    Args:
        log_p: normalised log-probabilities, float64 [..., V].
        by: one of ORDERS: the entropy, minus the largest probability, or minus its margin to the second.
    """
    if by == "entropy":
        return entropies(log_p)
    top = log_p.topk(min(2, log_p.shape[-1]), -1).values.exp()
    return -top[..., 0] if by == "confidence" or top.shape[-1] == 1 else top[..., 1] - top[..., 0]


@dataclass(frozen=True)
class EntropyBounded(UnmaskingSampler, id="sampler/entropy_bounded"):
    """Unmasking bounded by the entropy of what is revealed together.

    Args:
        gamma: the bound in nats, >= 0.
        order: which cells are certain: by entropy, confidence (the largest probability) or margin (to the
            second).
        limit: cells per call at most, >= 1; None: no limit.
    """

    gamma: NonNegativeFloat = 0.1
    order: str = setting("entropy", choices=ORDERS)
    limit: PositiveInt | None = None

    def unmask(self, state: UnmaskingState) -> None:
        state.until_full(self._chosen)

    def _chosen(self, logits: Tensor, masked: Tensor) -> Tensor:
        """bool [b, K, N]: the masked cells to be revealed, from logits [b, K, N, V]."""
        log_p = logits.double().masked_fill(~masked[..., None], 0.0).log_softmax(-1)
        known = ~masked.flatten(1)
        # A distribution that holds NaN comes first, so that it is drawn from, and refused, at once.
        score = uncertainty(log_p, self.order).flatten(1).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        place = score.masked_fill(known, torch.inf).argsort(dim=1, stable=True)
        entropy = entropies(log_p).flatten(1).masked_fill(known, torch.inf).gather(1, place)
        lost = (entropy.cumsum(1) - entropy.cummax(1).values).nan_to_num(torch.inf)
        fits = (lost <= self.gamma + 1e-12) & entropy.isfinite()
        fits[:, 0] = True
        if self.limit is not None:
            fits[:, self.limit :] = False
        return torch.zeros_like(fits).scatter(1, place, fits).view_as(masked)
