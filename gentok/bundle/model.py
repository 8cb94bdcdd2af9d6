"""A loaded model: what it encodes, decodes and samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentok.bundle.files import check_checksum, notes, read_checkpoint, read_folder, specs
from gentok.bundle.fingerprints import stamp
from gentok.bundle.models import build_generator, build_tokenizer
from gentok.bundle.places import find
from gentok.bundle.sizes import build_stored
from gentok.bundle.writing import save
from gentok.errors import ConfigError, FormatError
from gentok.interfaces import Generator, Tokenizer
from gentok.rng import RowRNG
from gentok.samplers.base import Sampler
from gentok.sampling import as_known, configured_sampler, sample
from gentok.types import Batch, ConditionSpec, Frames, Latents, Tokens, TokenSpec
from gentok.types.media import as_batch

__all__ = ["Bundle", "load"]


@dataclass(repr=False)
class Bundle:
    """A trained model.

    Attributes:
        kind: "tokenizer", or "generator" (then with both).
        tokenizer: media to tokens and back.
        generator: a model of the tokens, or None.
        condition_spec: what the generator is conditioned on.
        tokenizer_config, generator_config: what they are rebuilt from.
        meta: metrics, data, command, seed, versions.
        path: where it was loaded from.
        trust: packages beside gentok whose components it is made of.
    """

    kind: str
    tokenizer: Tokenizer
    generator: Generator | None
    condition_spec: ConditionSpec
    tokenizer_config: dict[str, Any]
    generator_config: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    trust: tuple[str, ...] = ()

    @property
    def spec(self) -> TokenSpec:
        """What its tokens are."""
        return self.tokenizer.spec

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        model = self.generator or self.tokenizer
        return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))

    def __repr__(self) -> str:
        modules = {"tokenizer": self.tokenizer, "generator": self.generator}
        parts = [
            f"{name}: {type(module).__name__}, {sum(p.numel() for p in module.parameters()):,} parameters"
            for name, module in modules.items()
            if module is not None
        ]
        return f"Bundle({'; '.join(parts)}; tokens: {self.spec.describe()}; {self.path or 'not loaded from a file'})"

    # ------------------------------------------------------------------------------------------------------------- use

    @torch.no_grad()
    def encode(self, media: Any, lengths: Tensor | None = None) -> Tokens | Latents:
        """Media to tokens.

        Args:
            media: float [B, C, H, W] or [B, C, T] in [-1, 1], on any device; or one image or sound, or a list of them: PIL images, arrays
                uint8 [H, W, C] or float [C, ...] (gentok.types.media.as_batch).
            lengths: int64 [B] in samples, of sounds that differ in length.

        Returns:
            Tokens [B, K, N], or Latents [B, D, N] of a tokenizer without a codebook.

        Raises:
            ValueError: media of another type, shape or range.
        """
        batch = as_batch(media, self.spec.media_shape or ())
        return self.tokenizer.encode(batch.to(self.device), None if lengths is None else lengths.to(self.device))

    @torch.no_grad()
    def decode(self, tokens: Tokens | Latents | Tensor, **options: Any) -> Tensor:
        """Tokens to media.

        Args:
            tokens: Tokens or Latents of this model, or their codes int64 [B, K, N], a tensor or a numpy array.
            options: of its tokenizer, such as keep=4 where a prefix of the tokens is a code.

        Returns:
            float32 [B, C, ...] in [-1, 1].

        Raises:
            ValueError: they are no tokens of this model; an id beyond its vocabulary is named.
        """
        if not isinstance(tokens, (Tokens, Latents)):
            tokens = Tokens(_tensor(tokens, "codes"), self.spec)
        if isinstance(tokens, Latents):
            return self.tokenizer.decode(replace(tokens, values=tokens.values.to(self.device)), **options)
        return self.tokenizer.decode(tokens.to(self.device).validate(), **options)

    def sample(
        self,
        n: int = 16,
        condition: Any = None,
        *,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        guidance_schedule: str = "constant",
        seed: int = 0,
        known: Any = None,
        keep: str | float | Tensor | None = None,
        duration: float | str | Sequence[float | str] | None = None,
        batch_size: int = 64,
        text_encoder: str | None = None,
    ) -> Tensor:
        """New media; item i depends on (seed, i) alone. `gentok.sampling.sample` gives their tokens and counts as well.

        Args:
            n: how many.
            condition: 7, "horse", {"class": [3, 4]}, a text, ...: what the model is conditioned on (see `condition_spec`).
            sampler: its name in conf/sampler, such as "maskgit", or a built one; None: the first that fits, exact ones first.
            steps, temperature, top_k, top_p: settings of the sampler; None leaves them as they are.
            guidance: strength of classifier-free guidance; None: what the model recommends.
            guidance_schedule: how the strength changes while an item is drawn.
            seed: of all draws.
            known: an image or a sound to complete: float [C, H, W] or [C, T], a PIL image, an array uint8 [H, W, C].
                Of drawings: the path or the bytes of an SVG file.
            keep: the part of `known` that stays: "left-half", ... or a mask [H, W] of an image, 1 where it stays; or seconds of a sound.
            duration: of sounds, in seconds.
            batch_size: items drawn at once; it changes no item.
            text_encoder: the folder of the encoder that makes the model's vectors of a text.

        Returns:
            float32 [n, C, ...] in [-1, 1].

        Raises:
            ValueError: something does not fit this model; the message says what does.
        """
        if self.generator is None:
            raise ValueError(f"{self.path or 'this bundle'} holds a tokenizer alone: sampling needs a generator's bundle or checkpoint")
        given = {k: v for k, v in {"steps": steps, "temperature": temperature, "top_k": top_k, "top_p": top_p}.items() if v is not None}
        chosen = configured_sampler(sampler, type(self.generator), given)
        out = sample(
            self, n=n, condition=condition, sampler=chosen, guidance=guidance, guidance_schedule=guidance_schedule, seed=seed,
            known=None if known is None else as_known(known, self.tokenizer),
            keep=keep, duration=duration, batch_size=batch_size, text_encoder=text_encoder,
        )  # fmt: skip
        return out.media

    def encode_batch(self, batch: Batch, rng: RowRNG | None = None) -> Tokens | Latents:
        """A batch as tokens, unequal items on the grid of `spec`. rng: for tokenizers that draw how conditions are written into it."""
        tokens = self.tokenizer.encode_batch(batch, rng)
        several = batch.lengths is not None or bool(self.tokenizer.written_condition.parts)
        return tokens.padded(self.spec) if several and isinstance(tokens, Tokens) else tokens

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Bundle:
        """Moves the weights, and changes their floating type where `dtype` is given; returns itself."""
        for module in (self.tokenizer, self.generator):
            if module is not None:
                module.to(device=device, dtype=dtype)
        return self

    def eval(self) -> Bundle:
        """Puts both models in eval mode, in which they are loaded; returns itself."""
        for module in (self.tokenizer, self.generator):
            if module is not None:
                module.eval()
        return self

    def __reduce__(self) -> Any:
        """Pickled as configurations and weights, from which it is built anew: some of torch's modules cannot be pickled."""
        modules = {name: module for name in ("tokenizer", "generator") if (module := getattr(self, name)) is not None}
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokenizer", "generator")}
        states = {name: (module.state_dict(), module.training) for name, module in modules.items()}
        return _rebuilt, (about, self.spec, states, self.device)

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> Path:
        """Writes it as a bundle folder; see `gentok.bundle.save`."""
        return save(
            path, tokenizer=self.tokenizer, tokenizer_config=self.tokenizer_config, generator=self.generator,
            generator_config=self.generator_config, condition_spec=self.condition_spec, meta=self.meta, dtype=dtype,
        )  # fmt: skip

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> Path:
        """Writes it as it is handed on, with a model card; see `gentok.bundle.publishing.save_pretrained`."""
        from gentok.bundle.publishing import save_pretrained

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Uploads it to the Hugging Face Hub as one commit, of which it returns the address; see `gentok.bundle.publishing.push_to_hub`."""
        from gentok.bundle.publishing import push_to_hub

        return push_to_hub(self, repo, **options)

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **options: Any) -> Bundle:
        """A folder, a model of gentok's, or "OWNER/NAME" on the hub; see `gentok.bundle.publishing.from_pretrained`."""
        from gentok.bundle.publishing import from_pretrained

        return from_pretrained(name, **options)


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} are a tensor of torch or an array of numpy; got {type(value).__name__}")
    return value


def _rebuilt(about: dict[str, Any], spec: TokenSpec, states: dict[str, tuple[dict[str, Tensor], bool]], device: torch.device) -> Bundle:
    """The inverse of Bundle.__reduce__."""
    config, trust = about["tokenizer_config"], about["trust"]
    modules: dict[str, Any] = {"tokenizer": build_tokenizer(config, trust), "generator": None}
    modules["tokenizer"].spec = spec
    if "generator" in states:
        modules["generator"] = build_generator(about["generator_config"], modules["tokenizer"], about["condition_spec"], trust)
    for name, (state, training) in states.items():
        modules[name].load_state_dict(state, assign=True)  # of the types that they have
        modules[name].train(training).requires_grad_(False)
    return Bundle(**about, **modules).to(device)


def load(path: str | os.PathLike[str], *, trust: Iterable[str] = (), device: torch.device | str = "cpu", ema: bool = True) -> Bundle:
    """A trained model, in eval mode.

    Args:
        path: a bundle folder, a training checkpoint (.ckpt), the name of a model that ships with gentok (docs/zoo), or a bundle on the
            Hugging Face Hub, hf://OWNER/NAME[@REVISION][/FOLDER].
        trust: packages beside gentok whose components may be built; "paths" says that the model is your own: it may name the files of
            frozen networks that it uses.
        device: where its weights go.
        ema: of a checkpoint, take the averaged weights.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        OSError: the hub cannot be reached, or refuses.
        FormatError: the file is damaged, of a newer format, or no model of gentok.
        ConfigError: it names something that may not be built.
    """
    if str(path) == "???":
        raise ConfigError("which model? Give a bundle folder or a training checkpoint: ckpt=PATH")
    path, trust = find(path), tuple(trust)
    document, tokenizer_state, generator_state = read_folder(path) if path.is_dir() else read_checkpoint(path, ema)
    places = "paths" in trust
    trust = tuple(name for name in trust if name != "paths")
    config = document["tokenizer"]["config"]
    spec, meant, condition_spec = specs(document, path)
    tokenizer = build_stored(
        lambda: build_tokenizer(config, trust, stored=not places), tokenizer_state, f"the tokenizer in {path}", trusted=places
    )
    built = replace(tokenizer.spec, encode_fingerprint=spec.encode_fingerprint, decode_fingerprint=spec.decode_fingerprint)
    if isinstance(spec.grid, Frames) and isinstance(built.grid, Frames):  # the longest item belongs to the data
        built = replace(built, grid=replace(built.grid, n=spec.grid.n))
    tokenizer.spec = spec
    made = stamp(tokenizer, config) if spec.encode_fingerprint else built
    if not made == built == spec:
        raise FormatError(
            f"the tokenizer in {path} is not the one that its header describes ({made.describe()} against "
            f"{spec.describe()}): it was changed or damaged"
        )
    generator, generator_config = None, None
    if document["kind"] == "generator":
        generator_config = document["generator"]["config"]
        if not meant.same_codes(spec):
            raise FormatError(f"the generator in {path} models {meant.describe()}, but the tokenizer beside it makes {spec.describe()}")
        generator = build_stored(
            lambda: build_generator(generator_config, tokenizer, condition_spec, trust, stored=not places), generator_state,
            f"the generator in {path}", trusted=places,
        )  # fmt: skip
        generator.eval().requires_grad_(False)
    tokenizer.eval().requires_grad_(False)
    check_checksum(document, path)
    about = (condition_spec, dict(config), generator_config, notes(document), str(path), trust)
    return Bundle(document["kind"], tokenizer, generator, *about).to(device)
