"""Filters: pure functions on logits that cut away or reshape the distribution of one id.

Every function takes logits float [..., V] and returns float64 [..., V] with -inf outside the kept set; an id
that is -inf stays -inf, at least one id stays where one is possible, and no NaN appears (a row that is -inf
everywhere is returned as it is; a NaN stays NaN, so that it is found where ids are drawn). Among equal
probabilities the lower id wins, so sets have exactly the size that they should. `apply` composes them in the
order temperature, top-k, top-p, min-p, typical; each sees the distribution that the one before left.

    temperature   p^(1/T), renormalised; T = 0 keeps the most probable id alone
    top_k         the k most probable ids
    top_p         the smallest set of most probable ids with mass >= p     (Holtzman et al., arXiv 1904.09751)
    min_p         ids with at least min_p times the largest probability    (Nguyen et al., arXiv 2407.01082)
    typical       the smallest set of mass >= tau of the ids whose surprise -log p is nearest to the entropy,
                  by |-log p - H| (Meister et al., "Locally Typical Sampling", arXiv 2202.00666); the most
                  probable id may be left out

Masses are compared with a slack of 1e-12, so that rounding in a cumulative sum adds no id to a set that is
already complete.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["temperature", "top_k", "top_p", "min_p", "typical", "apply"]

_SLACK = 1e-12
_INF = float("inf")


def _keep(logits: Tensor, kept: Tensor) -> Tensor:
    return logits.double().masked_fill(~(kept | logits.isnan()), -_INF)


def _smallest_set(logits: Tensor, score: Tensor, mass: float) -> Tensor:
    """bool [..., V]: the first ids by ascending score (ties: the lower id) whose mass reaches `mass`."""
    p = logits.double().softmax(-1).nan_to_num(0.0)
    order = score.argsort(dim=-1, stable=True)
    ordered = p.gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    kept = before < mass - _SLACK
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def temperature(logits: Tensor, value: float) -> Tensor:
    """logits / value, after subtracting the largest (which changes no distribution and cannot overflow);
    value 0: the most probable id alone."""
    if value < 0:
        raise ValueError(f"temperature must be >= 0 (0: the most probable id); got {value}")
    logits = logits.double()
    if value == 0:
        return top_k(logits, 1)
    if value == 1:
        return logits
    top = logits.amax(-1, keepdim=True)
    return (logits - torch.where(top == -_INF, torch.zeros_like(top), top)) / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly the k most probable ids (fewer only where fewer are possible)."""
    if k < 1:
        raise ValueError(f"top_k must be >= 1; got {k}")
    logits = logits.double()
    if k >= logits.shape[-1]:
        return logits
    last = logits.topk(k, -1).values[..., -1:]
    above, tied = logits > last, logits == last
    return _keep(logits, above | (tied & (tied.cumsum(-1) <= k - above.sum(-1, keepdim=True))))


def top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of most probable ids whose mass reaches p in (0, 1]."""
    if not 0 < p <= 1:
        raise ValueError(f"top_p must lie in (0, 1]; got {p}")
    return logits.double() if p == 1 else _keep(logits, _smallest_set(logits, -logits.double(), p))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Ids with at least p in [0, 1] times the largest probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"min_p must lie in [0, 1]; got {p}")
    logits = logits.double()
    return logits if p == 0 else _keep(logits, logits >= logits.amax(-1, keepdim=True) + math.log(p))


def typical(logits: Tensor, tau: float) -> Tensor:
    """The smallest locally typical set whose mass reaches tau in (0, 1]."""
    if not 0 < tau <= 1:
        raise ValueError(f"typical must lie in (0, 1]; got {tau}")
    if tau == 1:
        return logits.double()
    log_p = logits.double().log_softmax(-1)
    possible = log_p > -_INF
    surprise = torch.where(possible, -log_p, torch.zeros_like(log_p))
    entropy = (log_p.exp().nan_to_num(0.0) * surprise).sum(-1, keepdim=True)
    score = torch.where(possible, (surprise - entropy).abs(), torch.full_like(surprise, _INF))
    return _keep(logits, _smallest_set(logits, score, tau))


def apply(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical: float | None = None,
) -> Tensor:
    """All filters, one after the other.

    Args:
        logits: float [..., V].
        temperature: see `temperature`; the other filters likewise. None: off.

    Returns:
        Tensor: float64 [..., V].

    Raises:
        ValueError: a value is out of its range.
    """
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p), ("min_p", min_p), ("typical", typical)):
        if value is not None:
            logits = _FILTERS[name](logits, value)
    return logits


_FILTERS = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical": typical}
