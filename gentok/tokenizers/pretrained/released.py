"""Released weights in gentok's own codecs: put into a codec, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gentok.errors import counted
from gentok.interfaces import LocalPath
from gentok.nn.released import read_state
from gentok.tokenizers.codec import Codec

__all__ = ["NORMED", "ReleasedCodec", "factorized", "put"]

NORMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Length and direction of a weight-normalised layer: the names of torch's older form, and of the one that gentok's networks have."""


def put(codec: nn.Module, state: Mapping[str, Tensor], path: str | Path, model: str) -> None:
    """Loads `state`, under the codec's own names. Raises ValueError where it is that of another configuration. model: for messages."""
    own = codec.state_dict()
    for how, keys in (("lacks", own.keys() - state.keys()), ("has, beyond this codec,", state.keys() - own.keys())):
        if keys:
            found = f"{counted(len(keys), 'tensor')}, such as {min(keys)}"
            raise ValueError(f"{path} is not the {model} that is configured here: it {how} {found}")
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{path} is not the {model} that is configured here: {key} is {tuple(value.shape)} there and {tuple(own[key].shape)} here"
            )
    if not any(value.is_meta for value in own.values()):  # where only sizes are asked for, there is nowhere to put them
        codec.load_state_dict(state)


def factorized(at: str, part: str, last: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of a quantizer of DAC's kind, under the names of gentok's FactorizedVQ at `at`. part: in_proj, out_proj or codebook."""
    if part == "codebook":  # usage only tells dead rows, of which the releases know nothing
        return {at + "weight": value, at + "usage": value.new_zeros(len(value)), at + "started": torch.tensor(False)}
    return {f"{at}project_{part[:-5]}.{last}": value.squeeze(2) if value.dim() == 3 else value}  # kernels of 1


class ReleasedCodec(Codec):
    """A Codec with released weights or random ones. A bundle holds the weights, so its configuration names no file.

    Attributes:
        model: the model's name, for messages.
        files, known, released_by: of `read_state`.
    """

    model: ClassVar[str]
    files: ClassVar[Sequence[str]]
    known: ClassVar[re.Pattern[str]]
    released_by: ClassVar[str]

    def __init__(self, *, weights: LocalPath | None = None, **codec: Annotated[Any, Codec]):
        """
        Args:
            weights: a file with released weights, or the folder that holds it; None: random ones.
            codec: as of Codec.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model.
        """
        super().__init__(**codec)
        if weights is not None:
            self.load_weights(weights)
            self.needs_training = False

    @staticmethod
    def renamed(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
        """A released model's tensors under the names of this codec.

        Args:
            state: under the names that they were released with.
            levels: of the codec. Of more, the first are taken, which are a code by themselves.
        """
        raise NotImplementedError

    @classmethod
    def check_state(cls, state: Mapping[str, Tensor], path: str | Path) -> None:
        """Raises ValueError where it is a model of this family that cannot be a Codec."""

    def load_weights(self, path: str | Path) -> None:
        """Puts released weights into this codec.

        Raises:
            FileNotFoundError: there are none at `path`.
            ValueError: they are of another model.
        """
        state = read_state(path, self.model, self.files, self.known, self.released_by)
        self.check_state(state, path)
        put(self, self.renamed(state, self.spec.levels), path, self.model)

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)
