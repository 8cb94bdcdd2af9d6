"""Entropy-bounded unmasking: as many cells per call as can depend on each other by at most gamma nats.

Ben-Hamu et al., "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking", arXiv 2505.24857. In every call the
holes are ordered by how sure the network is of them, and the largest prefix U with

    sum over U of H_i - max over U of H_i <= gamma

is revealed, at least one cell. The left side bounds the dependence (the Kullback-Leibler divergence of the joint law of U from the
product of its marginals) that is lost when U is drawn as if independent.

An approximation for gamma > 0. With gamma = 0 (or limit = 1) it reveals one cell per call, and certain ones: which, depends on what was
revealed before and not on the ids to be drawn. That is exact for a model whose conditionals agree.

Choice: entropies and order are those of the model's own (guided) law, before temperature and filters, so that temperature = 0 makes the
samples and not the speed greedy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.unmasking import Unmasking, UnmaskingSampler

__all__ = ["ORDERS", "EntropyBounded", "entropies", "sure_first"]

ORDERS = ("entropy", "confidence", "margin")


def entropies(log_p: Tensor) -> Tensor:
    """log_p float64 [..., V], normalised -> nats [...]."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def sure_first(log_p: Tensor, by: str) -> Tensor:
    """A score [...], lowest where the law [..., V] is surest: its entropy, or minus its largest probability or the gap to the second."""
    if by == "entropy":
        return entropies(log_p)
    top = log_p.topk(min(2, log_p.shape[-1]), -1).values.exp()
    return -top[..., 0] if by == "confidence" or top.shape[-1] == 1 else top[..., 1] - top[..., 0]


@dataclass(frozen=True)
class EntropyBounded(UnmaskingSampler, id="sampler/entropy_bounded"):
    """gamma: nats, >= 0. order: entropy, confidence (largest probability) or margin (to the second). limit: cells per call at most."""

    gamma: float = 0.1
    order: str = "entropy"
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0 nats; got {self.gamma}")
        if self.order not in ORDERS:
            raise ValueError(f"there is no order {self.order!r}; choose one of {', '.join(ORDERS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null; got {self.limit}")

    def fill(self, filling: Unmasking) -> None:
        filling.until_full(self._chosen)

    def _chosen(self, logits: Tensor, masked_cells: Tensor) -> Tensor:
        """bool [b, K, N]: the holes to be revealed, from logits [b, K, N, V]."""
        log_p = logits.double().masked_fill(~masked_cells[..., None], 0.0).log_softmax(-1)
        entropy, score = entropies(log_p).flatten(1), sure_first(log_p, self.order).flatten(1)
        place = score.masked_fill(~masked_cells.flatten(1), torch.inf).argsort(dim=1, stable=True)
        h = entropy.masked_fill(~masked_cells.flatten(1), torch.inf).gather(1, place)
        lost = (h.cumsum(1) - h.cummax(1).values).nan_to_num(torch.inf)
        fits = (lost <= self.gamma + 1e-12) & h.isfinite()
        fits[:, 0] = True
        if self.limit is not None:
            fits[:, self.limit :] = False
        return torch.zeros_like(fits).scatter(1, place, fits).view_as(masked_cells)
