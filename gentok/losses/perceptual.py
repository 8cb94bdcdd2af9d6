"""A perceptual distance after LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features", arXiv
1801.03924, equation 1).

    d = mean over layers l and positions of  sum over channels of (x_l / |x_l| - y_l / |y_l|)²

Deviations: the features are those of EfficientNet-lite0 (its weights ship in a package), the channel weights
that LPIPS learns from human judgements are all 1, and layers are averaged instead of summed, so that the
distance lies in [0, 4] for every choice of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gentok.interfaces import Loss
from gentok.nn import features
from gentok.settings import NonNegativeFloat

__all__ = ["Perceptual"]


class Perceptual(Loss, id="loss/perceptual"):
    """weight * distance, a float32 scalar, of images float [B, 1 or 3, H, W] in [-1, 1]; no gradient to
    media.

    The frozen network is fetched at the first call, on the media's device, and is no part of this object.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, layers: Sequence[str] = ("stem", "stage1", "stage2", "stage3")):
        """Fetches nothing yet.

        Args:
            weight: of the distance.
            layers: stages of the network, at most as deep as the image has pixels (a stride-8 stage makes 4 x
                4 of a 32 px image).

        Raises:
            ValueError: there is no such layer.
        """
        unknown = [name for name in layers if name not in features.STAGES]
        if unknown or not layers:
            raise ValueError(f"perceptual layers are some of {', '.join(features.STAGES)}; got {list(layers)}")
        self.weight, self.layers = weight, tuple(layers)

    def __call__(self, reconstruction: Tensor, media: Tensor) -> Tensor:
        with torch.no_grad():
            target = features.stages(media, self.layers)
        found = features.stages(reconstruction, self.layers)
        distances = [(_unit(found[name]) - _unit(target[name])).square().sum(1).mean() for name in self.layers]
        return self.weight * torch.stack(distances).mean()


def _unit(x: Tensor) -> Tensor:
    # eps inside the root: ReLU6 leaves whole positions at 0, where the norm has no gradient
    return x * (x.square().sum(1, keepdim=True) + 1e-6).rsqrt()
