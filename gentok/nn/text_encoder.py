"""Frozen text encoders of the transformers library: CLIP's text model, T5's encoder, BERT and whatever else AutoModel reads.

A text becomes the last hidden states of its tokens, special ones (begin, end) included, as PixArt (arXiv 2310.00426) and Stable Diffusion
take them. Texts are padded to one length, so that a text's vectors do not depend on the others of its batch. Weights are read from a local
folder, never fetched; an encoder of texts and of something else (CLIP, T5) is used by its text half alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from gentok.devices import chosen_device
from gentok.errors import ConfigError
from gentok.types import Vectors, VectorsSpec, fingerprint

__all__ = ["TextEncoder"]

TEXT_HALVES = ("mt5", "t5", "t5gemma", "umt5")
"""Kinds of models whose encoder AutoModel does not read without a decoder."""
LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code that lies in the folder is run."""


class TextEncoder:
    """The text encoder in a local folder, which is read at the first use, in every process by itself.

    Args:
        path: a folder with a model and its tokenizer, as `save_pretrained` of transformers writes both.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.path.expanduser(os.fspath(path))
        if not Path(self.path).is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.path} of a text encoder: save one there (config.json, model.safetensors and its tokenizer)"
            )

    @property
    def name(self) -> str:
        """Which encoder it is: the kind of the model and a hash of its weights and of its tokenizer. Raises as `__call__`."""
        return _name(self.path)

    @property
    def width(self) -> int:
        """D, channels of a vector. Raises as `__call__`."""
        return int(_loaded(self.path, "cpu")[1].config.hidden_size)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that it reads; None: any. Raises as `__call__`."""
        tokenizer, model = _loaded(self.path, "cpu")
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))  # of T5's configurations none
        known = [int(limit) for limit in limits if limit is not None and limit < 1_000_000]  # unknown ones are 1e30
        return min(known, default=None)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included. Raises as `__call__`."""
        return [len(ids) for ids in _loaded(self.path, "cpu")[0](list(texts), verbose=False)["input_ids"]] if texts else []

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], length: int) -> Vectors:
        """The vectors of texts, computed on a GPU where there is one, but not by a loader's worker.

        Args:
            texts: B of them; an empty one has no vectors, which is the null condition.
            length: L, tokens after which texts are cut.

        Returns:
            Vectors: x float32 [B, L, D] on the CPU, 0 where mask bool [B, L] is False.

        Raises:
            ValueError: the folder holds no text encoder that transformers reads.
            ImportError: transformers is not installed.
        """
        tokenizer, model = _loaded(self.path, "cpu" if get_worker_info() else chosen_device("auto"))
        x, mask = torch.zeros(len(texts), length, self.width), torch.zeros(len(texts), length, dtype=torch.bool)
        rows = [row for row, text in enumerate(texts) if text]
        if rows:
            read = tokenizer([texts[row] for row in rows], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            ids, there = (read[key].to(model.device) for key in ("input_ids", "attention_mask"))
            states = model(input_ids=ids, attention_mask=there).last_hidden_state
            mask[rows] = there.bool().cpu()
            x[rows] = states.masked_fill(~there.bool()[..., None], 0.0).float().cpu()
        return Vectors(x, mask)

    def of_condition(self, values: list[Any], spec: VectorsSpec) -> list[Any]:
        """Texts among the values of a condition as vectors float [L, D]; for ConditionSpec.parse.

        Raises:
            ConfigError: the model's conditions are those of another encoder.
            ValueError, ImportError: as `__call__`.
        """
        if self.name != spec.encoder:
            raise ConfigError(
                f"text_encoder={self.path} is {self.name}; this model reads the vectors of {spec.encoder}: name that one's folder"
            )
        return [self._vectors(value, spec.max_length) if isinstance(value, str) else value for value in values]

    def _vectors(self, text: str, length: int) -> Tensor:
        encoded = self([text], length)
        return encoded.x[0, encoded.mask[0]]


@lru_cache(maxsize=2)
def _loaded(path: str, device: str) -> tuple[Any, Any]:
    """The tokenizer, and the model in float32 and eval mode."""
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError as error:
        raise ImportError("a text encoder needs the package transformers: pip install transformers") from error
    try:
        halves = AutoConfig.from_pretrained(path, **LOCAL).model_type in TEXT_HALVES
        tokenizer = AutoTokenizer.from_pretrained(path, **LOCAL)
        with torch.device("cpu"):
            model, about = (AutoModelForTextEncoding if halves else AutoModel).from_pretrained(path, output_loading_info=True, **LOCAL)
    except Exception as error:  # of a damaged or foreign file each reader of the library raises its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds no text encoder with its tokenizer that transformers reads: {reason}") from error
    missing = [name for name in about["missing_keys"] if "pooler" not in name]  # which is not read here
    if missing:
        raise ValueError(f"the weights in {path} lack {missing[0]}: they are of another model than its config.json says, or damaged")
    model = getattr(model, "text_model", model)  # of a model of texts and images its half
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # of a decoder such as GPT-2; padded places are masked
    return tokenizer, model.eval().requires_grad_(False).float().to(device)


@lru_cache(maxsize=2)
def _name(path: str) -> str:
    tokenizer, model = _loaded(path, "cpu")
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return f"{model.config.model_type}-{fingerprint(dict(model.state_dict()), vocabulary)}"
