"""Networks that say what an image's cells mean: the semantic branch of a tokenizer, and the frozen teachers that it rebuilds.

A semantic network is a module (media float [B, C, H, W] in [-1, 1], grid (h, w)) -> float32 [B, width, h, w], whatever grid its own map
has: finer ones are averaged, coarser ones interpolated. It is one of two kinds:

    frozen    its weights are someone else's and are named, not saved. What is saved is their `identity`, eight bytes of their hash: it
              enters the tokenizer's fingerprint, and weights of another identity under the same name are refused when a model is loaded.
    trained   its weights are the tokenizer's, saved with it. `start: teacher` takes them over from the teacher of the run, which must be
              the same network; `start: fresh` begins anew. A loaded model asks for no teacher.

A frozen network may be handed a MapMemory of maps that it has made before (see gentok.nn.feature_cache).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.interfaces import FeatureNetwork
from gentok.nn import features
from gentok.nn.autoencoder import ConvEncoder, ConvSettings
from gentok.nn.feature_cache import MapMemory, Shared
from gentok.precision import no_autocast
from gentok.settings import Count, PositiveInt, PositiveInts

__all__ = ["SemanticNetwork", "EfficientNetMap", "ConvolutionalMap", "to_grid"]


def to_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resizes a map: the mean of the cells that fall into one (area), or bilinear where there are too few.

    Args:
        x: float [B, D, H, W].
        grid: (h, w).

    Returns:
        float [B, D, h, w].
    """
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    if x.shape[2] >= grid[0] and x.shape[3] >= grid[1]:
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, size=tuple(grid), mode="bilinear", align_corners=False)


class SemanticNetwork(nn.Module, FeatureNetwork):
    """Base of these networks. A subclass gives `map` and `weights`.

    Args:
        frozen: see above.
        start: of one that is trained: "teacher" or "fresh".

    Attributes:
        width: channels of the map.
        memory: maps that are kept, of a frozen network.

    Raises:
        ValueError: another start.
    """

    width: int

    def __init__(self, frozen: bool, start: str = "fresh"):
        super().__init__()
        if start not in ("teacher", "fresh"):
            raise ValueError(f"a semantic network starts from start=teacher or start=fresh; got {start!r}")
        self.frozen, self.start = frozen, start
        self.memory: Shared[MapMemory] = Shared()
        if frozen:
            self.register_buffer("identity", torch.zeros(8, dtype=torch.uint8))

    def map(self, media: Tensor) -> Tensor:
        """media float [B, C, H, W] -> float32 [B, width, any, any], with gradient where the network is trained."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, frozen or not."""
        raise NotImplementedError

    def forward(self, media: Tensor, grid: tuple[int, int]) -> Tensor:
        if not self.frozen:
            return to_grid(self.map(media), grid)
        with torch.no_grad(), no_autocast(media.device):
            if self.memory.value is not None:
                return self.memory.value(media, lambda part: to_grid(self.map(part), grid))
            return to_grid(self.map(media), grid)

    # ----------------------------------------------------------------------------------------------------- frozen ones

    @torch.no_grad()
    def name_weights(self) -> None:
        """Writes down whose weights these are, once they are needed."""
        if self.frozen and not self.identity.is_meta and not self.identity.any():
            self.identity.copy_(identity_of(self.weights()))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        stored = state.get(f"{prefix}identity")
        if self.frozen and stored is not None and stored.any() and not self.identity.is_meta:
            found = identity_of(self.weights())
            if not torch.equal(found, stored.cpu().to(torch.uint8)):
                names = (bytes(x.cpu().to(torch.uint8).tolist()).hex() for x in (stored, found))
                raise ValueError(
                    "these codes were made with the frozen {} of identity {}; the one that is installed here is {}: install the version "
                    "that the model was trained with".format(type(self).__name__, *names)
                )

    # ---------------------------------------------------------------------------------------------------- trained ones

    @torch.no_grad()
    def begin(self, teacher: SemanticNetwork | None) -> None:
        """Takes over the teacher's weights where `start` says so. Raises ValueError where they do not fit."""
        if self.frozen or self.start == "fresh":
            return
        if type(teacher) is not type(self):
            name = "no teacher" if teacher is None else f"a {type(teacher).__name__}"
            raise ValueError(f"start=teacher needs a teacher of the same network, a {type(self).__name__}; there is {name}")
        mine = self.weights()
        theirs = teacher.weights()
        if not mine.keys() <= theirs.keys() or any(mine[key].shape != theirs[key].shape for key in mine):
            raise ValueError("start=teacher needs a teacher of the same network; this one has other layers: give both the same settings")
        for key, value in mine.items():
            value.copy_(theirs[key])


def identity_of(weights: dict[str, Tensor]) -> Tensor:
    """uint8 [8]: the beginning of a hash over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()[:8]), dtype=torch.uint8)


class EfficientNetMap(SemanticNetwork, id="features/efficientnet_map"):
    """The stride-16 map of EfficientNet-lite0 (gentok.nn.features), 112 channels, of the image enlarged `zoom` times (bicubic).

    A 32 px image at zoom 4 has a map of 8 x 8.

    Args:
        zoom: by what height and width are multiplied.
        trained: whether the 11 blocks up to there are parameters of this module; their batch norms keep the statistics that they start
            with, so that a row's map does not depend on its batch.
        start: as of SemanticNetwork.
    """

    width = features.WIDTHS["stage5"]

    def __init__(self, zoom: PositiveInt = 4, trained: bool = False, start: str = "teacher"):
        super().__init__(frozen=not trained, start=start)
        self.zoom = zoom
        if trained:
            self.network = features.trunk("stage5", pretrained=False)

    def map(self, media: Tensor) -> Tensor:
        size = (media.shape[2] * self.zoom, media.shape[3] * self.zoom)
        if self.frozen:
            return features.map16(media, size)
        return self.network(features.resized(media, size))

    def weights(self) -> dict[str, Tensor]:
        network = features.trunk("stage5", pretrained=True) if self.frozen else self.network
        return dict(network.state_dict())

    def train(self, mode: bool = True) -> EfficientNetMap:
        super().train(mode)
        if not self.frozen:
            self.network.eval()
        return self


class ConvolutionalMap(SemanticNetwork, id="features/convolutional_map"):
    """A trained convolutional network of the image at its own size, from a fresh start.

    Args:
        channels: of the image.
        width, multipliers, blocks, patch: as in gentok.nn.autoencoder.ConvSettings.
    """

    def __init__(
        self,
        channels: PositiveInt = 3,
        width: PositiveInt = 64,
        multipliers: PositiveInts = (1, 2),
        blocks: Count = 1,
        patch: PositiveInt = 2,
    ):
        super().__init__(frozen=False)
        settings = ConvSettings(width, multipliers, blocks, patch=patch)
        self.stride, self.width = settings.stride, width * multipliers[-1]
        self.network = ConvEncoder(channels, self.width, settings)

    def map(self, media: Tensor) -> Tensor:
        return self.network(media)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())
