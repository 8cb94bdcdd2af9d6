"""The terms of adversarial training. x, x': media and reconstruction; D: logits of a discriminator, D_l: its
features.

    hinge (Lim and Ye, arXiv 1705.02894):
        discriminator: 1/2 mean relu(1 - D(x)) + 1/2 mean relu(1 + D(x'))     tokenizer: -mean D(x')
    non_saturating (Goodfellow et al., arXiv 1406.2661):
        discriminator: 1/2 mean softplus(-D(x)) + 1/2 mean softplus(D(x'))    tokenizer: mean softplus(-D(x'))
    least_squares (HiFi-GAN, arXiv 2010.05646, equations 1 and 2; Mao et al., arXiv 1611.04076):
        discriminator: 1/2 mean (1 - D(x))² + 1/2 mean D(x')²                 tokenizer: mean (1 - D(x'))²
    feature matching (HiFi-GAN, equation 4):
        mean |D_l(x') - D_l(x)| of every layer l before the logits
      relative (EnCodec, arXiv 2210.13438, section 3.4): each layer's over mean |D_l(x)|
    lecam (Tseng et al., arXiv 2104.03310):
        mean relu(D(x) - a_fake)² + mean relu(a_real - D(x'))²;  a_fake, a_real: averages of mean logits
    adaptive (VQGAN, arXiv 2012.09841, equation 7):
        min(max, |grad L_rec| / (|grad L_adv| + 1e-6)), gradients at the decoder's last layer

Deviations: LeCam's differences are rectified, as in its released code (its equation squares them on both
sides), and its averages start at the first batch instead of at a constant. VQGAN's weight is bounded by 1e4;
here by what `adaptive` says, commonly 1. The discriminator's side of least squares has halves, as its
siblings have. EnCodec's released code does not divide features by their means, its paper does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gentok.distributed import all_sum, world_size

__all__ = [
    "LOSSES", "REDUCTIONS", "hinge", "non_saturating", "least_squares", "feature_matching", "lecam", "gradient_at", "adaptive_weight",
]  # fmt: skip


def hinge(real: Tensor | None, fake: Tensor) -> Tensor:
    """The discriminator's loss, or the tokenizer's.

    Args:
        real: logits of media, any shape; None: the tokenizer's loss is wanted.
        fake: logits of reconstructions, any shape.

    Returns:
        A float32 scalar.
    """
    if real is None:
        return -fake.float().mean()
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def non_saturating(real: Tensor | None, fake: Tensor) -> Tensor:
    """As `hinge`."""
    if real is None:
        return F.softplus(-fake.float()).mean()
    return 0.5 * (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean())


def least_squares(real: Tensor | None, fake: Tensor) -> Tensor:
    """As `hinge`."""
    if real is None:
        return (1 - fake.float()).square().mean()
    return 0.5 * ((1 - real.float()).square().mean() + fake.float().square().mean())


LOSSES = {"hinge": hinge, "non_saturating": non_saturating, "least_squares": least_squares}
REDUCTIONS = {"mean": torch.mean, "sum": torch.sum}


def feature_matching(made: Sequence[Tensor], real: Sequence[Tensor], relative: bool = False, reduce: str = "mean") -> Tensor:
    """The mean absolute difference of a layer, averaged or added over layers.

    Args:
        made: features of the reconstruction, layer by layer.
        real: those of the media; they get no gradient.
        relative: whether each layer's difference is divided by the mean magnitude of the media's features, of
            all ranks.
        reduce: "mean" or "sum", over layers.

    Returns:
        A float32 scalar.
    """
    differences = torch.stack([(m.float() - r.detach().float()).abs().mean() for m, r in zip(made, real, strict=True)])
    if relative:
        scales = torch.stack([r.detach().float().abs().mean() for r in real])
        differences = differences / (all_sum(scales) / world_size()).clamp(min=1e-8)
    return REDUCTIONS[reduce](differences)


def lecam(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """LeCam's regularisation.

    Args:
        real: logits of media.
        fake: logits of reconstructions.
        anchors: float [2], moving averages of the mean logits of media and of reconstructions.

    Returns:
        A float32 scalar.
    """
    return F.relu(real.float() - anchors[1]).square().mean() + F.relu(anchors[0] - fake.float()).square().mean()


def gradient_at(loss: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of `loss`, averaged over ranks; zero where it does not depend on the parameter. The graph
    stays, .grad is untouched."""
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    gradient = torch.zeros_like(parameter) if gradient is None else gradient
    return all_sum(gradient) / world_size()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, maximum: float = 1.0) -> Tensor:
    """The two gradients at the decoder's last layer -> a scalar in [0, maximum], without gradient."""
    return (reconstruction.norm() / (adversarial.norm() + 1e-6)).clamp(max=maximum).detach()
