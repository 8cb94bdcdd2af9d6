"""The smaller roles: what tokenizers, training and evaluation are made of beside codebooks, tokenizers, generators and samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, optim

from gentok.interfaces.component import Component
from gentok.interfaces.dataset import MediaDataset
from gentok.rng import RowRNG
from gentok.types import ConditionSpec, TokenizerOutput

if TYPE_CHECKING:
    from gentok.interfaces.tokenizer import Tokenizer

__all__ = [
    "Adversary", "Augmentation", "Balancer", "Consistency", "Discriminator", "FeatureNetwork", "Guidance", "Layer", "Loss", "MediaData",
    "Optimizer", "Schedule", "TimeDistribution",
]  # fmt: skip


class Layer(Component):
    """A network that a tokenizer is built of: an encoder, a decoder.

    Attributes:
        takes_rng: whether `forward` takes `rng`, a RowRNG to draw from.
        causal: whether an output depends on no later input, so that the network works chunk by chunk, by `init_state` and `step`.
    """

    takes_rng: bool = False
    causal: bool = False

    @property
    def last_layer(self) -> Tensor | None:
        """The last weight, where gradients of losses are compared; None where there is none."""
        return None

    def init_state(self) -> Any:
        """The state of a stream before its first chunk; of causal networks alone."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any, last: bool = False) -> Tensor:
        """The next chunk float [B, C, any] of a stream, whose state is changed -> what it completes. last: nothing follows."""
        raise NotImplementedError


class FeatureNetwork(Component):
    """A network whose map of an image or a sound is a target or an input: a teacher, a semantic encoder.

    Attributes:
        frozen: whether it is never trained; its maps may then be computed once and stored.
        width: channels of the map.
    """

    frozen: bool = False
    width: int


class Loss(Component):
    """(reconstruction, media) -> {name: weighted scalar}; a term of another loss gives its scalar alone."""

    def __call__(self, reconstruction: Tensor, media: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class Consistency(Component):
    """Losses of a tokenizer that need more than its reconstruction."""

    def __call__(self, tokenizer: Tokenizer, output: TokenizerOutput, lengths: Tensor | None, rng: RowRNG) -> dict[str, Tensor]:
        """The weighted terms.

        Args:
            tokenizer: in training.
            output: of its forward pass.
            lengths: int64 [B], of sounds, in samples; None: all are whole.
            rng: of the rows.

        Returns:
            {name: scalar}.

        Raises:
            ValueError: the tokenizer is of another kind than these losses need.
        """
        raise NotImplementedError


class TimeDistribution(Component):
    """rng -> times float64 [B] in [0, 1], at which a flow is trained."""


class Guidance(Component):
    """(conditional, unconditional, scale, state) -> (guided prediction, state)."""


class Discriminator(Component):
    """A network that tells media from reconstructions."""


class Adversary(Component):
    """A discriminator, or a set of them, with its objective."""


class Balancer(Component):
    """Weighs losses by their gradients at the reconstruction."""


class Optimizer(Component):
    """module -> torch.optim.Optimizer."""

    def __call__(self, module: nn.Module) -> optim.Optimizer:
        raise NotImplementedError


class Schedule(Component):
    """(progress in [0, 1], step) -> the factor of the learning rate."""


class MediaData(Component):
    """Data sets of media (gentok/data).

    Attributes:
        train, held_out: the two sets.
        media_shape: (C, H, W) or (C,) of an item; on the class None where it depends on the settings.
        condition_spec: the conditions that items have; on the class None where it depends on the settings.
        sample_rate: Hz, of sounds; None of images.
        longest_item: samples, of sounds.
        band_limit: Hz above which the recordings hold nothing, where that is known.
    """

    train: MediaDataset
    held_out: MediaDataset
    media_shape: tuple[int, ...] | None = None
    condition_spec: ConditionSpec | None = None
    sample_rate: int | None = None
    longest_item: int | None = None
    band_limit: float | None = None


class Augmentation(Component):
    """(media, rng) -> media."""

    def __call__(self, media: Tensor, rng: RowRNG) -> Tensor:
        """Changes media.

        Args:
            media: float [B, ...].
            rng: of the rows.

        Returns:
            The same shape and dtype.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The settings, for headers and protocols: the public attributes, which JSON must be able to hold."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}
