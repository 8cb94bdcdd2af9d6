"""Released weights in gentok's own codecs: reading a file without running its code, and putting it into a codec or saying why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok.interfaces import Codebook, Layer, LocalPath, Loss
from gentok.tokenizers.codec import Codec

__all__ = ["ReleasedCodec", "put", "read_state"]


def read_state(path: str | Path, what: str, names: Sequence[str], known: Callable[[str], Any], expected: str) -> dict[str, Tensor]:
    """The tensors of a file, or of the first of `names` (patterns) in a folder, under the names there.

    what: the model, for messages. known: whether a tensor's name is one that only such a model has. expected: whose files are read.
    Raises FileNotFoundError, or ValueError with a line where the file is another or would have to run code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [file for name in names for file in sorted(path.glob(name))]
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no {what} weights: none of {', '.join(names)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there are no {what} weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise on a foreign file, the answer is the same
        raise ValueError(f"{path} holds no weights that can be read without running its code: it is damaged, or something else") from error
    if isinstance(state, Mapping):
        state = next((state[inside] for inside in ("state_dict", "best_state") if inside in state), state)
    if not isinstance(state, Mapping) or not any(known(str(key)) for key in state):
        raise ValueError(f"{path} holds no {what} model: expected the weights of {expected}, with a quantizer")
    return dict(state)


def put(codec: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Loads `state`, under the codec's own names. Raises ValueError with a line where it is that of another configuration."""
    own = codec.state_dict()
    for how, keys in (("lacks", own.keys() - state.keys()), ("has, beyond this codec,", state.keys() - own.keys())):
        if keys:
            raise ValueError(f"{path} is not the {what} that is configured here: it {how} {len(keys)} tensor(s), such as {min(keys)}")
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{path} is not the {what} that is configured here: {key} is {tuple(value.shape)} there and {tuple(own[key].shape)} here"
            )
    if not any(value.is_meta for value in own.values()):  # where only sizes are asked for, there is nowhere to put them
        codec.load_state_dict(state)


class ReleasedCodec(Codec):
    """weights: a file or folder with released weights, or None for random ones; the rest as in gentok.tokenizers.codec.Codec. A bundle
    holds the weights, so its configuration names no file. Subclasses give `load_weights`. Raises FileNotFoundError, or ValueError with a
    line where the weights are of another model."""

    def __init__(
        self,
        encoder: Layer,
        codebook: Codebook,
        decoder: Layer,
        sample_rate: int,
        losses: Loss | None = None,
        media_shape: Sequence[int] | None = None,
        weights: LocalPath | None = None,
    ):
        super().__init__(encoder, codebook, decoder, sample_rate, losses, media_shape)
        if weights is not None:
            self.load_weights(weights)
            self.needs_training = False

    def load_weights(self, path: str) -> None:
        raise NotImplementedError

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "weights": None} if "weights" in config else dict(config)


