"""Adaptive weighted rejection: an id that a constraint accepts, and a weight that makes up for the choice; few ids are asked about.

Lipkin et al., "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling", arXiv 2504.05410, in its
recursive form. The ids of a distribution p are put in the order of a race (Gumbel numbers), and asked about one by one. With R the
probability of all that were refused before, and q = p_y / (1 - R):

    y is refused        w <- w (1 - q), and the next one is asked
    y is accepted       the one behind it is asked too: w stays where that is accepted, else w <- w q; y is drawn

Then E[w 1{y = x}] = p_x valid(x) for every id x: y has the distribution p given that it is valid, and E[w] is the probability that it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["weighted_rejection"]


def weighted_rejection(log_p: Tensor, order: Tensor, accept: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Draws one id per row.

    Args:
        log_p: logits float [b, V], -inf where an id is impossible.
        order: int64 [b, V], the ids in the order of a race: those without replacement from p.
        accept: (rows int64 [m], ids int64 [m]) -> bool [m]; it is asked about possible ids alone.

    Returns:
        (ids int64 [b], log weights float64 [b], ids that were asked about int64 [b]). Where none is valid the weight is 0, its logarithm
        -inf, and the id is the first of the order.
    """
    p = log_p.double().softmax(-1).gather(1, order)
    left = p.flip(1).cumsum(1).flip(1)  # 1 - R before each, to the last digits also where it is small
    left = torch.cat((left, torch.zeros_like(left[:, :1])), 1)
    ids, log_weight = order[:, 0].clone(), torch.zeros(len(p), dtype=torch.float64, device=p.device)
    asked, active = torch.zeros_like(ids), torch.arange(len(p), device=p.device)
    for j in range(p.shape[1]):
        good = accept(active, order[active, j])
        asked[active] += 1
        refused, drawn = active[~good], active[good]
        log_weight[refused] += of_refusal(p, left, refused, j)
        ids[drawn] = order[drawn, j]
        behind = drawn[left[drawn, j + 1] > 0]  # the last possible id has q = 1 and none behind it
        if len(behind):
            other = accept(behind, order[behind, j + 1])
            asked[behind] += 1
            alone = behind[~other]
            log_weight[alone] += of_lone_choice(p, left, alone, j)
        active = refused[left[refused, j + 1] > 0]
        if not len(active):
            break
    return ids, log_weight, asked


def of_refusal(p: Tensor, left: Tensor, rows: Tensor, j: int) -> Tensor:
    """log(1 - q) float64 [m] of the j-th ids of rows int64 [m], from p and 1 - R before each, both float64 [b, V] in the order."""
    return left[rows, j + 1].log() - left[rows, j].log()


def of_lone_choice(p: Tensor, left: Tensor, rows: Tensor, j: int) -> Tensor:
    """log q float64 [m], as of_refusal."""
    return p[rows, j].log() - left[rows, j].log()
