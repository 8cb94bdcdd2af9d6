"""The loss balancer of EnCodec (Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438,
section 3.4, equation 5).

Losses that pass through the reconstruction x' alone have gradients g_i = d loss_i / d x'. What is sent back
into the network is not their sum but

    sum over i of  (w_i / sum of w) * R * g_i / (epsilon + n_i)

n_i: the average over steps, exponential with `decay` and corrected for its start, of the mean norm of an
item's g_i. So a weight is the share of the gradient that a loss has, whatever its scale. Losses that do not
pass through x' (commitment) stay outside, as they are.

Over several processes the norms are means over all items. As R is the norm of an item's gradient, what is
sent back is the sum over all items of an update, over processes and accumulated batches too, so that their
number changes nothing (but that averages take a step per batch). Deviation: audiocraft sums over the items of
each process and averages that over processes; its R of 1 on 8 of them is 1/8 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gentok.distributed import all_sum, world_size
from gentok.interfaces import Balancer as BaseBalancer
from gentok.settings import FractionBelow1, NonNegativeFloat, PositiveFloat

__all__ = ["Balancer"]


class Balancer(BaseBalancer, id="balancer/encodec"):
    """Weighs losses by their gradients at the reconstruction."""

    def __init__(
        self,
        weights: Mapping[str, NonNegativeFloat],
        total: PositiveFloat = 1.0,
        decay: FractionBelow1 = 0.999,
        epsilon: NonNegativeFloat = 1e-12,
    ):
        """Begins without averages.

        Args:
            weights: w of every term that passes through the reconstruction, by name. Those that are not there
                in a step (a discriminator that has not started) have no share in it.
            total: R.
            decay: of the averages, in [0, 1).
            epsilon: see the file.

        Raises:
            ValueError: a setting is out of its range.
        """
        if not weights:
            raise ValueError("a balancer needs weights by the names of losses, as '{wave: 0.1, mel: 1.0}'")
        self.weights, self.total, self.decay, self.epsilon = dict(weights), total, decay, epsilon
        self.averages: dict[str, Tensor] = {}
        """name -> float64 [2]: the decayed sum of norms, and of ones."""

    def __call__(
        self, terms: Mapping[str, Tensor], reconstruction: Tensor, ramps: Mapping[str, float] | None = None, accumulate: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Balances the losses of one batch.

        Args:
            terms: name -> scalar.
            reconstruction: float [B, ...], through which those of `weights` pass.
            ramps: name -> factor of a weight that grows; None: 1.
            accumulate: backward passes of an update, over which its gradient is averaged.

        Returns:
            The scalar whose backward pass sends back the balanced gradient and those of the terms outside
            (its value is the balanced terms' under their factors, plus the terms outside), and {name: n_i}.

        Raises:
            ValueError: a name of `weights` does not reach the reconstruction, or another term does.
        """
        gradients = {name: _gradient(term, reconstruction) for name, term in terms.items()}
        self._check(gradients)
        inside = {name: gradient for name, gradient in gradients.items() if name in self.weights}
        outside = [term for name, term in terms.items() if name not in self.weights]
        norms = self._averaged(inside)
        weights = {name: self.weights[name] * (ramps or {}).get(name, 1.0) for name in inside}
        whole = sum(weights.values())
        balanced, value = torch.zeros_like(reconstruction), reconstruction.new_zeros((), dtype=torch.float32)
        for name, gradient in inside.items():
            if weights[name]:
                factor = weights[name] / whole * self.total / (self.epsilon + norms[name])
                balanced += (factor * gradient).to(balanced)
                value = value + factor * terms[name].detach()
        sent = (reconstruction * (balanced * (world_size() * accumulate))).sum()
        loss = value.to(sent) + (sent - sent.detach())
        return loss + sum(outside) if outside else loss, norms

    def _check(self, gradients: Mapping[str, Tensor | None]) -> None:
        for name, gradient in gradients.items():
            if name in self.weights and gradient is None:
                raise ValueError(
                    f"the loss {name!r} does not pass through the reconstruction, so it cannot be balanced: take it out of balancer.weights"
                )
            if name not in self.weights and gradient is not None:
                raise ValueError(
                    f"the loss {name!r} passes through the reconstruction, and balancer.weights does not name it; it names "
                    f"{', '.join(self.weights)}: give it a weight there"
                )
        if not any(name in self.weights for name in gradients):
            raise ValueError(f"none of the losses {', '.join(gradients)} is named in balancer.weights: set balancer=none, or name them")

    @torch.no_grad()
    def _averaged(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The averages, after this batch has entered them."""
        sums = [gradient.flatten(1).double().norm(dim=1).sum() for gradient in gradients.values()]
        items = torch.full_like(sums[0], len(next(iter(gradients.values()))))
        *sums, items = all_sum(torch.stack([*sums, items]))
        out = {}
        for name, total in zip(gradients, sums, strict=True):
            now = torch.stack([total / items, torch.ones_like(items)])
            before = self.averages.get(name)
            self.averages[name] = now if before is None else self.decay * before.to(now) + now
            out[name] = self.averages[name][0] / self.averages[name][1]
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, the same on all processes."""
        return {name: average.clone() for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.averages = {name: average.double().clone() for name, average in state.items()}


def _gradient(term: Tensor, reconstruction: Tensor) -> Tensor | None:
    """None where the term does not depend on the reconstruction. The graph stays."""
    if not term.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(term, reconstruction, retain_graph=True, allow_unused=True)
    return gradient
