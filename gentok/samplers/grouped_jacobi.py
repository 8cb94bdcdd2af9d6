"""Speculative Jacobi decoding that accepts a draft by the mass of the ids around it: an approximation.

Grouped speculative decoding (So et al., "Grouped Speculative Decoding for Autoregressive Image Generation", arXiv
2508.07747). Ids of neighbouring rank are nearly interchangeable, so a draft x is accepted with probability min(1, p(A) /
q(A)), where A holds x and the ids of at most `group` ranks above and below it in p whose probability differs from
p(x) by at most `gap`. Where it is rejected, the step is drawn from norm((p - q)+) as in jacobi. That is not the model's
distribution; group=0 is jacobi.

Deviation: the paper also leaves out ids whose embedding is far from x's, which a sampler does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentok.samplers.jacobi import Jacobi
from gentok.samplers.recursive_rejection import RecursiveRejection
from gentok.samplers.sibling_rule import SiblingRule
from gentok.settings import Fraction, NonNegativeInt

__all__ = ["GroupedJacobi"]


@dataclass(frozen=True)
class GroupedJacobi(Jacobi, id="sampler/grouped_jacobi"):
    """Jacobi decoding with grouped acceptance.

    Args:
        group: ranks on either side of a draft that count with it, >= 0.
        gap: how far their probability may be from the draft's, in [0, 1].
    """

    exact = False

    group: NonNegativeInt = 7
    gap: Fraction = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verify != "standard":
            raise ValueError(f"grouped acceptance is a rule of its own: set verify=standard; got verify={self.verify}")

    @property
    def rule(self) -> SiblingRule:
        return RecursiveRejection(self.chance)

    def chance(self, p: Tensor, q: Tensor, x: Tensor) -> Tensor:
        """Of a draft, by p, q float64 [..., V] and its id int64 [...]."""
        order = p.argsort(dim=-1, descending=True, stable=True)
        rank = (order == x[..., None]).to(torch.int64).argmax(-1, keepdim=True)
        near = rank + torch.arange(-self.group, self.group + 1, device=p.device)
        ids = order.gather(-1, near.clamp(0, p.shape[-1] - 1))
        mass = p.gather(-1, ids)
        counts = (near >= 0) & (near < p.shape[-1]) & ((mass - p.gather(-1, x[..., None])).abs() <= self.gap)
        return (mass * counts).sum(-1) / (q.gather(-1, ids) * counts).sum(-1)
