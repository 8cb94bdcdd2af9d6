"""Adversarial terms for any tokenizer: a discriminator with its objective, start step and ramp (formulas:
adversarial_terms.py).

A network of several discriminators gives lists; their terms, and those of their layers, are averaged
(EnCodec) or added (HiFi-GAN, DAC).

Over several processes all of it is what one process has on the whole batch: the averages of LeCam are taken
over all ranks, as are the mean features that relative matching divides by; of the adaptive weight the
gradients are averaged over ranks before their norms are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gentok.distributed import all_sum, world_size
from gentok.interfaces import Adversary as BaseAdversary
from gentok.interfaces import Discriminator, Optimizer
from gentok.losses.adversarial_terms import LOSSES, REDUCTIONS, adaptive_weight, feature_matching, gradient_at, lecam
from gentok.rng import RowRNG
from gentok.settings import FractionBelow1, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveFraction

__all__ = ["Adversaries", "Adversary", "frozen"]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, what `module` computes carries no gradient to its own parameters."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Adversary(nn.Module, BaseAdversary, id="adversary/adversary"):
    """One discriminator, or several in one network, and how it is used."""

    def __init__(
        self,
        network: Discriminator,
        weight: NonNegativeFloat = 1.0,
        loss: str = "hinge",
        start: NonNegativeInt = 0,
        ramp: NonNegativeInt = 0,
        adaptive: PositiveFloat | None = None,
        lecam: NonNegativeFloat = 0.0,
        decay: FractionBelow1 = 0.999,
        features: NonNegativeFloat = 0.0,
        relative: bool = False,
        reduce: str = "mean",
    ):
        """Holds the network.

        Args:
            network: media -> (logits, features of every layer before them); of several discriminators a list
                of logits and a list of lists of features.
            weight: of its term in the tokenizer's loss.
            loss: a name of LOSSES.
            start: step from which it is trained and used; before it, it is not called.
            ramp: steps over which its weights then grow linearly from 0; 0: at once. It is trained in full
                from `start`.
            adaptive: the largest adaptive weight, which multiplies `weight`; None: no adaptive weight.
            lecam: weight of LeCam's regularisation, 0 for none.
            decay: of LeCam's averages.
            features: weight of feature matching, 0 for none.
            relative: see `feature_matching`.
            reduce: "mean" or "sum", over discriminators and, in feature matching, over layers.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if loss not in LOSSES or reduce not in REDUCTIONS:
            raise ValueError(
                f"the loss of an adversary is {' or '.join(LOSSES)}, its reduce {' or '.join(REDUCTIONS)}; got {loss!r} and {reduce!r}"
            )
        self.network, self.weight, self.loss = network, weight, LOSSES[loss]
        self.start, self.ramp, self.adaptive, self.lecam, self.decay = start, ramp, adaptive, lecam, decay
        self.features, self.relative, self.reduce = features, relative, reduce
        self.register_buffer("anchors", torch.zeros(2))
        self.register_buffer("anchored", torch.tensor(False))

    def active(self, step: int) -> bool:
        """Whether it is trained and used at this step."""
        return step >= self.start

    def ramp_at(self, step: int) -> float:
        """In [0, 1]: 0 before `start`, then the ramp, then 1."""
        return (min(1.0, (step - self.start + 1) / self.ramp) if self.ramp else 1.0) if self.active(step) else 0.0

    def weight_at(self, step: int) -> float:
        """`weight` times the ramp; without the adaptive part."""
        return self.weight * self.ramp_at(step)

    def _outputs(self, media: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The logits of every discriminator, and the features of all their layers."""
        logits, features = self.network(media)
        if isinstance(logits, Tensor):
            return [logits], list(features)
        return list(logits), [layer for part in features for layer in part]

    def _reduced(self, terms: Sequence[Tensor]) -> Tensor:
        return REDUCTIONS[self.reduce](torch.stack(list(terms)))

    def tokenizer_loss(self, reconstruction: Tensor, media: Tensor | None = None) -> dict[str, Tensor]:
        """The tokenizer's terms, unweighted, with gradient to `reconstruction` alone.

        Args:
            reconstruction: what the network is given.
            media: needed where features are matched.

        Returns:
            {"adversarial": scalar, and "features" where they are matched}.
        """
        with frozen(self.network):
            logits, made = self._outputs(reconstruction)
            terms = {"adversarial": self._reduced([self.loss(None, part) for part in logits])}
            if self.features:
                with torch.no_grad():
                    real = self._outputs(media)[1]
                terms["features"] = feature_matching(made, real, self.relative, self.reduce)
        return terms

    def discriminator_loss(self, media: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """{"loss": the discriminator's own loss, with gradient to its parameters alone, "real", "fake": mean
        logits of this process}."""
        real, fake = self._outputs(media.detach())[0], self._outputs(reconstruction.detach())[0]
        loss = self._reduced([self.loss(r, f) for r, f in zip(real, fake, strict=True)])
        means = torch.stack([torch.stack([part.detach().float().mean() for part in side]).mean() for side in (real, fake)])
        if self.lecam:
            of_all_ranks = (all_sum(means) / world_size()).to(self.anchors)
            if not self.anchored:
                self.anchors.copy_(of_all_ranks)
                self.anchored.fill_(True)
            anchors = self.anchors.clone()  # the next line but one changes them before the backward pass
            loss = loss + self.lecam * self._reduced([lecam(r, f, anchors) for r, f in zip(real, fake, strict=True)])
            self.anchors.lerp_(of_all_ranks, 1 - self.decay)
        return {"loss": loss, "real": means[0], "fake": means[1]}


class Adversaries(nn.Module, BaseAdversary, id="adversary/adversaries"):
    """The discriminators of a run."""

    def __init__(
        self,
        adversaries: Mapping[str, Adversary],
        optimizer: Optimizer,
        clip: PositiveFloat | None = 1.0,
        update_rate: PositiveFraction = 1.0,
    ):
        """Holds them.

        Args:
            adversaries: by name.
            optimizer: of all their parameters.
            clip: of the norm of their gradient, separately from the tokenizer's; None: not at all.
            update_rate: the probability that a step trains them; the tokenizer has their terms in every step.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if not adversaries:
            raise ValueError("discriminator.adversaries is empty: name at least one, or set discriminator=none")
        self.parts = nn.ModuleDict(adversaries)
        self.optimizer, self.clip, self.update_rate = optimizer, clip, update_rate

    def trained_at(self, step: int, seed: int) -> bool:
        """Whether a step of the run with this seed trains them: one draw for all of them and for all
        processes."""
        return self.update_rate == 1 or RowRNG.of(seed, torch.tensor([step])).fork("adversaries").uniform(1).item() < self.update_rate

    def active(self, step: int) -> dict[str, Adversary]:
        """Those that are trained and used at this step."""
        return {name: part for name, part in self.parts.items() if part.active(step)}

    def tokenizer_loss(
        self, reconstruction: Tensor, media: Tensor | None, loss: Tensor, last_layer: Tensor | None, step: int, weighted: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tokenizer's terms of all that are active.

        Args:
            reconstruction: what the networks are given.
            media: needed where features are matched.
            loss: the tokenizer's other terms, of which only those that pass through the decoder reach
                `last_layer`.
            last_layer: the decoder's last parameter; not needed where no active adversary is adaptive.
            step: of the run.
            weighted: False leaves out all weights, for a balancer that has its own.

        Returns:
            {"adversarial_NAME", "features_NAME": weighted scalars to add to `loss`}, and {NAME: weight that
            its adversarial term has}.
        """
        terms, weights, own = {}, {}, None
        for name, part in self.active(step).items():
            found = part.tokenizer_loss(reconstruction, media)
            weight, of_features = (part.weight_at(step), part.features * part.ramp_at(step)) if weighted else (1.0, 1.0)
            if part.adaptive is not None and weighted:
                own = gradient_at(loss, last_layer) if own is None else own
                weight = weight * adaptive_weight(own, gradient_at(found["adversarial"], last_layer), part.adaptive)
            terms[f"adversarial_{name}"], weights[name] = weight * found["adversarial"], weight
            if "features" in found:
                terms[f"features_{name}"] = of_features * found["features"]
        return terms, weights

    def names(self) -> dict[str, Adversary]:
        """The names of all terms of `tokenizer_loss`, and whose they are."""
        names = {f"adversarial_{name}": part for name, part in self.parts.items()}
        return names | {f"features_{name}": part for name, part in self.parts.items() if part.features}
