"""What the wrappers of pretrained models share: loading, the configuration that goes into a bundle, and the codebook as gentok's.

A wrapper is built from `path` (a local folder as the library's `save_pretrained` writes it, or a hub name, for which a connection or a
filled cache is needed) or from `config` (the model's configuration as a plain dict: random weights, for what is loaded afterwards). In a
bundle `path` is replaced by the configuration found there, so it is rebuilt without the hub.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok.codebooks.base import fill, float32, nearest_rows, share_used, straight_through
from gentok.interfaces import Codebook, LocalPath, Loss, Tokenizer
from gentok.rng import RowRNG
from gentok.tokenizers.base import check_images, sized_spec
from gentok.types import Batch, Grid, Quantized, Raster, TokenizerOutput, Tokens, TokenSpec

__all__ = ["Portable", "Pretrained", "PretrainedVQ", "Table", "import_library", "load_model", "plain"]


def import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this tokenizer wraps a model of {name}, which is not installed: pip install {name}") from error


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a library's configuration that JSON can hold, without what says where it came from."""
    kept = {}
    for key, value in config.items():
        if not key.startswith("_"):
            try:
                kept[key] = json.loads(json.dumps(value))
            except TypeError:
                continue
    return kept


def load_model(
    library: str,
    name: str,
    path: LocalPath | None,
    config: Mapping[str, Any] | None,
    subfolder: str | None,
    from_config: Callable[[type], nn.Module],
) -> nn.Module:
    """The model `name` of `library`: of `path` with its weights, else by `from_config` with random ones.

    Raises ValueError where not exactly one of path and config is given, FileNotFoundError with a line where nothing loads from path.
    """
    if (path is None) == (config is None):
        raise ValueError(
            f"{name} needs tokenizer.path (a folder written by save_pretrained, or a hub name) or tokenizer.config (random weights), "
            f"and not both; got {'neither' if path is None else 'both'}"
        )
    cls = getattr(import_library(library), name, None)
    if cls is None:
        raise ImportError(f"the installed {library} has no {name}: upgrade it")
    if path is None:
        return from_config(cls)
    options = {"subfolder": subfolder} if subfolder else {}
    try:
        with torch.device("cpu"):
            model, notes = cls.from_pretrained(str(Path(path).expanduser()) if os.path.exists(path) else path, output_loading_info=True,
                                               **options)  # fmt: skip
    except Exception as error:  # each library and hub version raises its own
        looked = f"the folder {path}" if os.path.exists(path) else f"{path!r}, which is no local folder, on the hub"
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no {library} {name} could be loaded from {looked} ({first}); a hub name needs a connection or a filled cache, the path of "
            "a folder written by save_pretrained works without"
        ) from error
    if notes.get("missing_keys"):
        missing = sorted(notes["missing_keys"])
        raise ValueError(f"{path} is no {name}: it lacks {len(missing)} weights, such as {missing[0]}; is tokenizer.subfolder right?")
    return model.float()


class Table(Codebook):
    """gentok.types.Codebook as a view on the embedding of a pretrained quantizer; holds no parameter of its own.

    embedding: rows [V, D]. normalize: lookup gives rows of length 1 (LlamaGen's). search: codes of z are looked for among the rows as
    stored, as the libraries do; or, with normalize_input, z too is scaled to length 1 and compared with the rows that lookup gives.
    beta: weight of the commitment term of `forward`'s loss.
    """

    levels, nested_levels, invertible = 1, False, True

    def __init__(self, embedding: nn.Embedding, normalize: bool = False, normalize_input: bool = False, beta: float = 0.25):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: it is registered, moved and saved where it belongs, in the model
        self.vocab_sizes = (embedding.num_embeddings,)
        self.width = self.in_width = embedding.embedding_dim
        self.parts: dict[str, slice] = {}
        self.normalize, self.normalize_input, self.beta = normalize, normalize_input, beta

    def grid(self, h: int, w: int) -> Grid:
        return Raster(h, w)

    @property
    def rows(self) -> Tensor:
        weight = self._embedding[0].weight
        return weight if weight.dtype == torch.float64 else weight.float()

    def table(self, level: int = 0) -> Tensor:
        """float32 [V, D]: the rows as lookup gives them."""
        if level:
            raise ValueError(f"this codebook has one level, got level {level}")
        return nn.functional.normalize(self.rows, dim=1) if self.normalize else self.rows

    @float32
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, 1, N] -> float32 [B, D, N]; absent codes give zeros."""
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
        z = (z if z.dtype == torch.float64 else z.float()).transpose(1, 2)
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
    """A tokenizer whose bundle describes the model that it was loaded from: `model_config` is what that is rebuilt from."""

    model_config: dict[str, Any]
    needs_training = False

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The tokenizer's configuration `config` with the model's own in the place of where it was loaded from."""
        gone = {"path": None, "subfolder": None} if "subfolder" in config else {"path": None}
        return {**config, **gone, "config": self.model_config}


class Pretrained(Portable, Tokenizer):
    """A model of another library as `self.model`; `self.model_config` is what it is rebuilt from. Subclasses name library and model."""

    library: str
    model_name: str
    decode_only: Sequence[str] = ()  # encoder and decoder both lie in `model`: the encode fingerprint covers all of it

    def __init__(self, path: LocalPath | None, config: Mapping[str, Any] | None, losses: Loss | None, subfolder: str | None = None):
        super().__init__()
        self.model = load_model(self.library, self.model_name, path, config, subfolder, lambda cls: self._from_config(cls, dict(config)))
        self.model_config = self._config_of(self.model)
        self.losses = losses

    def _from_config(self, cls: type, config: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def _config_of(self, model: nn.Module) -> dict[str, Any]:
        raise NotImplementedError

    def _shape(self, media_shape: Sequence[int], channels: int) -> tuple[int, int, int]:
        """media_shape checked against the model. Raises ValueError with a line."""
        if len(media_shape) != 3 or media_shape[0] != channels:
            raise ValueError(f"{self.model_name} takes {channels} channel(s), the data are {tuple(media_shape)}: set data.channels")
        if media_shape[1] % self.stride or media_shape[2] % self.stride:
            raise ValueError(
                f"{self.model_name} takes sizes that {self.stride} divides; the data has {media_shape[1]} x {media_shape[2]}: "
                "set data.size, or resize or pad it"
            )
        return tuple(int(n) for n in media_shape)

    def _media(self, media: Tensor) -> tuple[Tensor, TokenSpec]:
        check_images(media, self.spec.media_shape[0], self.stride)
        return media.to(next(self.model.parameters()).dtype), sized_spec(self.spec, media, self.stride)


class PretrainedVQ(Pretrained):
    """A pretrained VQ model. Subclasses give `_features`: media -> [B, D, h, w], and `_pictures`: the rows [B, D, h, w] -> media."""

    codebook: Table

    def _finish(self, media_shape: Sequence[int], channels: int, stride: int, codebook: Table) -> None:
        self.stride, self.codebook = stride, codebook
        shape = self._shape(media_shape, channels)
        self.spec = TokenSpec(codebook.vocab_sizes, Raster(shape[1] // stride, shape[2] // stride), media_shape=shape)

    def _features(self, media: Tensor) -> Tensor:
        raise NotImplementedError

    def _pictures(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def _decoded(self, vectors: Tensor, grid: Raster) -> Tensor:
        vectors = vectors.to(next(self.model.parameters()).dtype).unflatten(2, (grid.h, grid.w))
        media = self._pictures(vectors.contiguous())  # as the libraries have it: another layout rounds otherwise
        return media if media.dtype == torch.float64 else media.float()

    @torch.no_grad()
    def encode(self, media: Tensor, lengths: Tensor | None = None, rng: RowRNG | None = None) -> Tokens:
        """media float [B, C, H, W] in [-1, 1] -> Tokens [B, 1, N]."""
        media, spec = self._media(media)
        return Tokens(self.codebook(self._features(media).flatten(2)).codes, spec)

    @torch.no_grad()
    def decode(self, tokens: Tokens, rng: RowRNG | None = None) -> Tensor:
        """Tokens [B, 1, N] -> media float32 [B, C, H, W] in [-1, 1]; absent codes are zero vectors."""
        grid = tokens.spec.grid
        if not isinstance(grid, Raster) or grid.positions != tokens.codes.shape[2]:
            raise ValueError(f"{self.model_name} decodes codes [B, 1, h * w] of a raster; got {tuple(tokens.codes.shape)} on {grid}")
        if tokens.spec.vocab_sizes != self.spec.vocab_sizes:
            raise ValueError(f"these tokens are of another tokenizer: {tokens.spec.describe()}; this one makes {self.spec.describe()}")
        return self._decoded(self.codebook.lookup(tokens.codes), grid).clamp(-1, 1)

    def forward(self, batch: Batch, rng: RowRNG | None = None) -> TokenizerOutput:
        """For fine-tuning: losses of `losses` and of the codebook; the reconstruction is unclamped, with gradient."""
        media, spec = self._media(batch.media)
        quantized = self.codebook(self._features(media).flatten(2))
        reconstruction = self._decoded(quantized.vectors, spec.grid)
        losses = {**quantized.losses, **(self.losses(reconstruction, batch.media) if self.losses is not None else {})}
        return TokenizerOutput(Tokens(quantized.codes, spec), losses, reconstruction)
