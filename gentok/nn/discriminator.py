"""PatchGAN (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", arXiv 1611.07004, appendix 6.1.2).

C64-C128-C256-C512 with 4x4 convolutions and LeakyReLU(0.2): `layers` of them with stride 2, one more with stride 1, and a last one to a
logit per patch. No norm after the first. With 3 layers a patch is 70 x 70 pixels.

Deviations: GroupNorm instead of batch norm, so that an image's logits do not depend on its neighbours in the batch nor on how a batch
is split over processes; unconditional, as VQGAN (arXiv 2012.09841) uses it.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from gentok.interfaces import Discriminator
from gentok.settings import Count, PositiveInt

__all__ = ["PatchGAN"]


class PatchGAN(nn.Module, Discriminator, id="discriminator/patchgan"):
    """media float [B, C, H, W] in [-1, 1] -> (logits float [B, 1, h, w], features of every layer but the last, each [B, D, h', w']).

    h = H / 2^layers - 2, so heights and widths must be at least 3 * 2^layers.

    Args:
        channels: C.
        width: channels of the first layer, doubled per layer up to 8 times.
        layers: convolutions with stride 2.

    Raises:
        ValueError: smaller media, or other channels.
    """

    def __init__(self, channels: PositiveInt = 3, width: PositiveInt = 64, layers: Count = 3):
        super().__init__()
        self.channels, self.smallest = channels, 3 * 2**layers
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2))])
        for i, (before, now) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 1 if i == layers - 1 else 2
            convolution = nn.Conv2d(before, now, 4, stride, 1, bias=False)  # the norm has a bias
            self.stages.append(nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, now), now), nn.LeakyReLU(0.2)))
        self.head = nn.Conv2d(widths[-1], 1, 4, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, media: Tensor) -> tuple[Tensor, list[Tensor]]:
        if media.dim() != 4 or media.shape[1] != self.channels:
            raise ValueError(f"this discriminator takes images [B, {self.channels}, H, W]; got {tuple(media.shape)}: set its channels")
        if min(media.shape[2:]) < self.smallest:
            raise ValueError(
                f"a PatchGAN of {len(self.stages) - 1} layers needs images of at least {self.smallest} x {self.smallest} pixels; "
                f"got {media.shape[2]} x {media.shape[3]}: choose fewer layers"
            )
        features = []
        x = media.to(self.head.weight.dtype)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(x), features
