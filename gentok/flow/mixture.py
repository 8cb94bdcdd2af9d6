"""A mixture of Gaussians per position, whose means are affine in a few features: so many components that
their means are never written out.

    p(z) = sum_m softmax(logits)_m N(z; mean_m, var_m I)
    mean_m = centre + unit (offset_m + map_m r),    var_m = floor + (unit exp(log_scale_m))^2

r are R features of the position, map_m [D, R] and offset_m [D] belong to the component: a mean that is affine
in the network's state by a matrix of rank R (Kim et al., CLaM-TTS, arXiv 2404.02781, and ResGen, arXiv
2412.10208). With y = (z - centre) / unit,

    |y - offset_m - map_m r|^2
        = |y|^2 - 2 y.offset_m - 2 y.map_m r + |offset_m|^2 + 2 offset_m.map_m r + |map_m r|^2

is linear in the features (1, y, r, y r', r r'), so the distances to all components are one matrix product,
[B, N, M] and never [B, N, M, D]. Differences of large numbers: float32 and better alone, also under autocast;
distances below about 1e-6 |y|^2 are rounding.

The bound. z is known up to q(z) = N(z; target, spread I). For any weights w of the components Jensen's
inequality gives

    E_q[-log p(z)] <= sum_m w_m (C_m + log w_m - log softmax(logits)_m),
    C_m = E_q[-log N(z; mean_m, var_m I)]

With w = softmax(-C), the components as if they were equally likely, it splits into

    fit    = -log sum_m exp(-C_m)                regression: how near the nearest components come, whatever
                                                 their weights are
    choice = -sum_m w_m log softmax(logits)_m    classification: which of them it was

The gradient of `fit` reaches every component near the target also where its weight is small, so that none
dies. w is held constant in the gradient of `choice`: the weights learn which component fits, the components
do not learn to be likely ones. For one component the bound is the exact value; in general it exceeds E_q[-log
p] by no more than the divergence of w from the components' posteriors, in the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gentok.precision import no_autocast
from gentok.rng import RowRNG

__all__ = ["Mixture"]


@dataclass
class Mixture:
    """M components per position. All tensors but the logits have one dtype, float32 or float64.

    Args:
        logits: float [B, N, M].
        features: r, float [B, N, R].
        maps: float [M, D, R].
        offsets: float [M, D].
        log_scale: float [B, N, M].
        centre: float [B, N, D].
        unit: float [B, N], > 0.
        floor: float scalar, >= 0.
    """

    logits: Tensor
    features: Tensor
    maps: Tensor
    offsets: Tensor
    log_scale: Tensor
    centre: Tensor
    unit: Tensor
    floor: Tensor

    def with_logits(self, logits: Tensor) -> Mixture:
        """The same components with other weights."""
        return replace(self, logits=logits)

    def rows(self, rows: slice) -> Mixture:
        """Some rows of the batch."""
        own = ("logits", "features", "log_scale", "centre", "unit")
        return replace(self, **{name: getattr(self, name)[rows] for name in own})

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.offsets.shape[1]

    @property
    def variance(self) -> Tensor:
        """Of every component: float [B, N, M]."""
        return self.floor + (self.unit[..., None] * self.log_scale.exp()).square()

    def squared(self, z: Tensor) -> Tensor:
        """Squared distances of z, float [B, N, D], to the means: float [B, N, M]."""
        with no_autocast(z.device):
            return self._squared(z)

    def _squared(self, z: Tensor) -> Tensor:
        y = (z - self.centre) / self.unit[..., None]
        r, maps, offsets = self.features, self.maps, self.offsets
        gram = maps.transpose(1, 2) @ maps  # [M, R, R]
        rank = r.shape[-1]
        # The products of pairs of features, each pair once.
        i, j = torch.triu_indices(rank, rank, device=r.device)
        pairs = r[..., i] * r[..., j]
        double = torch.where(i == j, 1.0, 2.0).to(r)
        cross = (y[..., :, None] * r[..., None, :]).flatten(-2)
        own = torch.cat((cross, pairs, y, r), -1)
        theirs = torch.cat(
            (-2 * maps.flatten(1), gram[:, i, j] * double, -2 * offsets, 2 * (offsets[:, None] @ maps)[:, 0]), 1
        )  # fmt: skip
        out = own @ theirs.T + offsets.square().sum(1) + y.square().sum(-1, keepdim=True)
        return out.clamp(min=0) * self.unit[..., None].square()

    def mean(self, component: Tensor) -> Tensor:
        """The mean of one component of each position, int64 [B, N]: float [B, N, D]."""
        with no_autocast(component.device):
            moved = (self.maps[component] @ self.features[..., None])[..., 0]
        return self.centre + self.unit[..., None] * (self.offsets[component] + moved)

    def costs(self, z: Tensor, spread: Tensor | float = 0.0) -> Tensor:
        """The nats C of every component, in the mean over N(z, spread I).

        Args:
            z: float [B, N, D].
            spread: >= 0, broadcasts to [B, N, 1].

        Returns:
            Tensor: float [B, N, M].
        """
        variance = self.variance
        return 0.5 * (self.width * (torch.log(2 * math.pi * variance) + spread / variance) + self.squared(z) / variance)

    def nats(self, z: Tensor) -> Tensor:
        """The exact -log p(z) of z, float [B, N, D]: float [B, N]."""
        return -torch.logsumexp(self._log_weights() - self.costs(z), -1)

    def bound(self, z: Tensor, spread: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """The bound in two parts, (choice, fit), each float [B, N]: their sum is at least E[-log p] over N(z,
        spread I).

        Arguments as of `costs`.
        """
        costs = self.costs(z, spread)
        weights = (-costs).softmax(-1).detach()
        return -(weights * self._log_weights()).sum(-1), -torch.logsumexp(-costs, -1)

    def draw(self, component: Tensor, rng: RowRNG, temperature: float = 1.0) -> Tensor:
        """Vectors of N(mean, temperature var I), a component's density to the power 1 / temperature.

        Args:
            component: int64 [B, N].
            rng: of B rows.
            temperature: >= 0; 0: the mean.

        Returns:
            Tensor: z, float [B, N, D].
        """
        mean = self.mean(component)
        deviation = (temperature * self.variance.gather(-1, component[..., None])).sqrt()
        return mean + deviation * rng.normal(*mean.shape[1:]).to(mean)

    def _log_weights(self) -> Tensor:
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return logits.log_softmax(-1)
