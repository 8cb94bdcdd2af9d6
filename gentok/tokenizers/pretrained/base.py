"""What the wrappers of models of diffusers and transformers share: loading, the configuration that goes into a bundle, the codebook.

A wrapper is built from `path` (a local folder as the library's `save_pretrained` writes it, or a hub name, for which a connection or a
filled cache is needed) or from `config` (the model's configuration as a plain dict: random weights, for what is loaded afterwards). In a
bundle `path` is replaced by the configuration found there, so it is rebuilt without the hub.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gentok.codebooks.base import fill, float32, nearest_rows, share_used, straight_through
from gentok.errors import counted
from gentok.interfaces import Codebook, LocalPath, Loss
from gentok.precision import at_least_float32
from gentok.rng import RowRNG
from gentok.settings import PositiveInts
from gentok.tokenizers.base import ImageTokenizer
from gentok.types import Quantized

__all__ = ["Portable", "Pretrained", "Table", "import_library", "load_model", "one_of", "settings_of"]


def import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this tokenizer wraps a model of {name}, which is not installed: pip install {name}") from error


def settings_of(library: str, model: nn.Module) -> dict[str, Any]:
    """What rebuilds a model of a library: the entries of its configuration that JSON can hold, without where it came from."""
    given = _declared(model.config) if library == "transformers" else model.config
    kept = {}
    for key, value in given.items():
        if not key.startswith("_"):
            try:
                kept[key] = json.loads(json.dumps(value))
            except TypeError:
                continue
    return kept


def _declared(config: Any) -> dict[str, Any]:
    """What its class declares itself of a configuration of transformers. Those inside it are whole, for they may hold what other classes
    compute; what all have in common is left out."""
    common = import_library("transformers").PreTrainedConfig().to_dict()
    own = {name: getattr(config, name) for name in type(config).__annotations__ if name not in ("model_type", "base_config_key")}
    for name, value in own.items():
        if hasattr(value, "to_dict"):
            kept = {key: inner for key, inner in value.to_dict().items() if key not in common}
            own[name] = {"model_type": value.model_type, **kept}
    return own


def one_of(what: str, path: Any, config: Any, places: str) -> None:
    """Raises ValueError unless exactly one of path and config is given. places: what a path names."""
    if (path is None) == (config is None):
        raise ValueError(
            f"{what} needs tokenizer.path ({places}) or tokenizer.config (random weights), and not both; "
            f"got {'neither' if path is None else 'both'}"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message, its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def load_model(
    library: str,
    name: str,
    path: LocalPath | None,
    config: Mapping[str, Any] | None,
    subfolder: str | None = None,
    downloads: bool = True,
) -> nn.Module:
    """A model of diffusers or transformers.

    Args:
        library: "diffusers" or "transformers".
        name: of the model's class.
        path: a folder written by save_pretrained, or a hub name.
        config: instead of path: the model's configuration, for random weights.
        subfolder: of path, where the model lies in a pipeline.
        downloads: whether a hub name may be downloaded; else its files have to be in the cache.

    Raises:
        ValueError: not exactly one of path and config is given, or path lacks weights.
        FileNotFoundError: nothing loads from path.
        ImportError: the library, or the model in it, is missing.
    """
    one_of(name, path, config, "a folder written by save_pretrained, or a hub name")
    cls = getattr(import_library(library), name, None)  # a library's class, which an old version may lack
    if cls is None:
        raise ImportError(f"the installed {library} has no {name}: upgrade it")
    if path is None:
        return cls(cls.config_class(**config)) if library == "transformers" else cls(**config)
    local, options = os.path.exists(path), {"local_files_only": not downloads}
    options.update({"subfolder": subfolder} if subfolder else {})
    try:
        with torch.device("cpu"):
            model, notes = cls.from_pretrained(str(Path(path).expanduser()) if local else path, output_loading_info=True, **options)
    except Exception as error:  # each library and hub version raises its own
        place = f"the folder {path}" if local else f"{path!r}, which is no local folder, on the hub"
        raise FileNotFoundError(
            f"no {library} {name} could be loaded from {place} ({first_line(error)}); a hub name needs a connection or a filled cache, "
            "the path of a folder written by save_pretrained works without"
        ) from error
    if notes.get("missing_keys"):
        missing = f"{counted(len(notes['missing_keys']), 'weight')}, such as {min(notes['missing_keys'])}"
        raise ValueError(f"{path} is no {name}: it lacks {missing}; is tokenizer.subfolder right?")
    return model.float()


class Table(Codebook):
    """The embedding of a pretrained quantizer as a codebook; holds no parameter of its own."""

    def __init__(self, embedding: nn.Embedding, normalize: bool = False, normalize_input: bool = False, beta: float = 0.25):
        """
        Args:
            embedding: rows [V, D].
            normalize: `lookup` gives rows of length 1 (LlamaGen's).
            normalize_input: vectors too are scaled to length 1, and compared with the rows that `lookup` gives; else vectors are compared
                with the rows as stored, as the libraries do.
            beta: weight of the commitment term.
        """
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: it is registered, moved and saved where it belongs, in the model
        self.vocab_sizes = (embedding.num_embeddings,)
        self.width = self.in_width = self.dim = embedding.embedding_dim
        self.normalize, self.normalize_input, self.beta = normalize, normalize_input, beta

    @property
    def rows(self) -> Tensor:
        return at_least_float32(self._embedding[0].weight)

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, D]: the rows as lookup gives them."""
        if level:
            raise ValueError(f"this codebook has one level, got level {level}")
        return nn.functional.normalize(self.rows, dim=1) if self.normalize else self.rows

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, 1, N] -> float32 [B, D, N]; absent codes give zeros."""
        self.check_codes(codes)
        codes = codes[:, 0]
        vectors = self.table()[codes.clamp(min=0)].masked_fill((codes < 0)[..., None], 0.0)
        return vectors.transpose(1, 2)

    @float32
    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, D, N], in the space that lookup returns -> codes [B, 1, N]."""
        flat = vectors.transpose(1, 2).reshape(-1, self.width).double()
        return fill(nearest_rows(flat, self.table().double()).view(len(vectors), 1, -1), given)

    @float32
    def forward(self, z: Tensor, *, n_levels: Tensor | None = None, rng: RowRNG | None = None) -> Quantized:
        """z float [B, D, N] -> Quantized; losses: the two terms of VQ-VAE (van den Oord et al., arXiv 1711.00937, equation 3)."""
        z = at_least_float32(z).transpose(1, 2)
        if self.normalize_input:
            z = nn.functional.normalize(z, dim=2)
        searched = self.table() if self.normalize_input else self.rows
        codes = nearest_rows(z.detach().reshape(-1, self.width), searched).view(len(z), -1)
        vectors = self.table()[codes]
        commitment, codebook = (vectors.detach() - z).square().mean(), (vectors - z.detach()).square().mean()
        losses = {"commitment": self.beta * commitment, "codebook": codebook}
        usage = share_used(codes, self.vocab_sizes[0])[None]
        return Quantized(straight_through(vectors, z).transpose(1, 2), codes[:, None], losses, usage)


class Portable:
    """A tokenizer whose bundle describes the model that it was loaded from.

    Attributes:
        model_config: what that model is rebuilt from.
    """

    model_config: dict[str, Any]
    needs_training = False

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The tokenizer's configuration `config` with the model's own in the place of where it was loaded from."""
        gone = {"path": None, "subfolder": None} if "subfolder" in config else {"path": None}
        return {**config, **gone, "config": self.model_config}


class Pretrained(Portable, ImageTokenizer):
    """An image model of another library as `self.model`. Subclasses name it, and give `features` and `to_media`.

    Attributes:
        library: "diffusers" or "transformers".
        model_name: the class of the model.
        stages: the key of the model's configuration that has an entry for each resolution.
        normalize: whether the rows of its codebook are decoded at length 1.
        quantized: whether it has a codebook at all.
    """

    library: ClassVar[str] = "transformers"
    model_name: ClassVar[str]
    stages: ClassVar[str] = "channel_multiplier"
    normalize: ClassVar[bool] = False
    quantized: ClassVar[bool] = True
    decode_only: Sequence[str] = ()  # encoder and decoder both lie in `model`: the encode fingerprint covers all of it

    def __init__(
        self,
        media_shape: PositiveInts,
        path: LocalPath | None = None,
        subfolder: str | None = None,
        config: Mapping[str, Any] | None = None,
        losses: Loss | None = None,
    ):
        """
        Args:
            media_shape: (C, H, W) of the data.
            path: a folder written by the model's save_pretrained, or a hub name.
            subfolder: of path, where the model lies in a pipeline.
            config: instead of path: the model's configuration, for random weights.
            losses: (reconstruction, media) -> {name: weighted scalar}, for fine-tuning.

        Raises:
            ValueError: not exactly one of path and config is given, or the data do not fit the model.
            FileNotFoundError: nothing loads from path.
        """
        model = load_model(self.library, self.model_name, path, config, subfolder)
        settings = model.config
        if len(media_shape) != 3 or media_shape[0] != settings.in_channels:
            raise ValueError(
                f"{self.model_name} takes {counted(settings.in_channels, 'channel')}, the data are {tuple(media_shape)}: set data.channels"
            )
        codebook = Table(model.quantize.embedding, self.normalize) if self.quantized else None
        stride = 2 ** (len(getattr(settings, self.stages)) - 1)  # of the library's object
        super().__init__(media_shape, stride, codebook, losses, None if self.quantized else settings.latent_channels)
        self.model, self.codebook = model, codebook
        self.model_config = settings_of(self.library, model)

    @property
    def last_layer(self) -> Tensor | None:
        return self.model.decoder.conv_out.weight
