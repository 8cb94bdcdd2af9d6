"""The bundle: a trained model as a folder that describes itself and cannot run code.

    bundle.json                    format number, kind, configurations, token and condition specs, versions, metrics, where it comes from
    tokenizer/model.safetensors    always there: a generator's bundle contains its tokenizer
    generator/model.safetensors    only where kind == "generator"
    README.md                      a model card made from bundle.json

Weights are safetensors, configurations plain JSON, targets are built under an allow-list (gentok/build.py). Written under a temporary
name and renamed, so that a kill at any time leaves the last good bundle. Fingerprints are taken from what is stored and checked on loading.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok import __version__
from gentok.build import ConfigError, build, resolve
from gentok.bundle_files import FORMAT, load_state, neighbours, read_checkpoint, read_folder
from gentok.rng import RowRNG
from gentok.types import Batch, ConditionSpec, FormatError, Frames, Latents, Tokens, TokenSpec, encoding, fingerprint

__all__ = ["FORMAT", "Bundle", "load", "pretrained", "save", "stamp", "build_tokenizer", "build_generator", "nest_latents", "portable"]

TRAINING_ONLY = ("losses", "teacher")  # parts of a tokenizer's configuration that neither codes nor pictures depend on


@dataclass
class Bundle:
    """A loaded model. kind: "tokenizer" or "generator" (then with both). meta: metrics, data, command, seed, versions."""

    kind: str
    tokenizer: Any
    generator: Any | None
    condition_spec: ConditionSpec
    tokenizer_config: dict[str, Any]
    generator_config: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    path: str = ""

    @property
    def spec(self) -> TokenSpec:
        return self.tokenizer.spec

    def encode(self, batch: Batch, rng: RowRNG | None = None) -> Tokens | Latents:
        """A batch's media; items that differ in length as tokens on the grid of `spec`, whose longest item bounds it. noise: for tokenizers
        that draw how a batch's condition is written into their codes."""
        given = encoding(self.tokenizer, batch.condition, rng)
        if batch.lengths is None and not given:
            return self.tokenizer.encode(batch.media)
        return self.tokenizer.encode(batch.media, batch.lengths, **given).padded(self.spec)

    def to(self, device: torch.device | str) -> Bundle:
        self.tokenizer.to(device)
        if self.generator is not None:
            self.generator.to(device)
        return self

    def sample(self, n: int = 16, condition: Any = None, **options: Any) -> Tensor:
        """n new media, float [n, ...] in [-1, 1]. options: sampler, guidance, seed, known, ... of gentok.sampling.sample."""
        from gentok.sampling import sample

        return sample(self, n=n, condition=condition, **options).media

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> Path:
        return save(
            path, tokenizer=self.tokenizer, tokenizer_config=self.tokenizer_config, generator=self.generator,
            generator_config=self.generator_config, condition_spec=self.condition_spec, meta=self.meta, dtype=dtype,
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- building


def build_tokenizer(config: Mapping[str, Any], trust: Iterable[str] = (), *, training: bool = False, **given: Any) -> nn.Module:
    """A tokenizer from its configuration; outside training its losses and teachers, which it then does not need, are left out."""
    if not training:
        config = {key: None if key in TRAINING_ONLY else value for key, value in config.items()}
    return build(config, trust=trust, where="tokenizer", **given)


def build_generator(config: Mapping[str, Any], tokenizer: Any, condition_spec: ConditionSpec, trust: Iterable[str] = ()) -> nn.Module:
    """A generator for the tokens of `tokenizer`; one that needs code vectors is handed its codebook. It is not conditioned on what the
    tokenizer writes into its codes. Raises ConfigError where the tokens have a grammar, which this generator does not follow."""
    spec, codebook = tokenizer.spec, getattr(tokenizer, "codebook", None)
    if spec.grammar and not getattr(resolve(config["_target_"], trust), "follows_grammar", False):
        name = config["_target_"].rpartition(".")[2]
        raise ConfigError(f"these tokens have a grammar, which {name} does not follow: choose generator=autoregressive")
    left = condition_spec.without(getattr(tokenizer, "takes", None) or ConditionSpec())
    return build(config, trust=trust, where="generator", spec=spec, condition_spec=left, codebook=codebook)


def nest_latents(config: Mapping[str, Any], trust: Iterable[str] = (), *, shape_only: bool = False) -> tuple[dict[str, Any], str | None]:
    """(a tokenizer's configuration, None), where its `latents` (or `speech`, `whole`) are {ckpt: BUNDLE} with the configuration of the
    tokenizer in that bundle in their place, which the new bundle then describes and holds by itself, and BUNDLE, whose weights it takes.

    shape_only: what is inside without a bundle, described by its sizes, is left as it is. Raises ConfigError, OSError.
    """
    config = dict(config)
    name = _inside(config) or "latents"
    given = config.get(name)
    if not isinstance(given, Mapping) or "_target_" in given:
        return config, None
    if given.get("ckpt") is None:
        if shape_only:
            return config, None
        what = "needs the bundle of the whole" if name == "whole" else f"works on {name}: give the bundle of what makes them"
        raise ConfigError(f"this tokenizer {what}, tokenizer.{name}.ckpt=BUNDLE")
    inner = load(given["ckpt"], trust=trust)
    sizes = {"latents": _latent_sizes, "speech": _speech_sizes, "whole": lambda spec: {}}[name](inner.spec)
    for key, found in sizes.items():
        if given.get(key) not in (None, found):
            raise ConfigError(f"tokenizer.{name}.{key}={given[key]}, but {given['ckpt']} makes {name} of {key} {found}")
    config[name] = {k: v for k, v in inner.tokenizer_config.items() if k not in TRAINING_ONLY}
    return config, str(given["ckpt"])


def _inside(config: Mapping[str, Any]) -> str | None:
    """The key of the tokenizer inside one that needs no training of its own (speech_text, prefix)."""
    return next((name for name in ("speech", "whole") if name in config), None)


def _latent_sizes(spec: TokenSpec) -> dict[str, Any]:
    return {"width": spec.width, "stride": spec.media_shape[1] // getattr(spec.grid, "h", 1)}


def _speech_sizes(spec: TokenSpec) -> dict[str, Any]:
    if spec.levels != 1 or not isinstance(spec.grid, Frames):
        return {}  # the tokenizer around it says what is wrong
    return {"vocab_size": spec.vocab, "hop": round(spec.sample_rate / spec.grid.rate_hz), "sample_rate": spec.sample_rate}


def portable(tokenizer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as it rebuilds `tokenizer` anywhere: one that was loaded from elsewhere (its `portable`) names no place any more."""
    change = getattr(tokenizer, "portable", None)
    return dict(config) if change is None else change(config)


def pretrained(config: Mapping[str, Any], media_shape: Iterable[int], trust: Iterable[str] = ()) -> Bundle:
    """A tokenizer that needs no training, as the bundle that it would be, with fingerprints, in eval mode: one that others trained
    (gentok/tokenizers/pretrained), or that only rewrites what a trained one inside gives (speech_text, prefix).

    Raises ConfigError where `config` is of a tokenizer that has to be trained first.
    """
    name = _inside(config)
    config, inside = nest_latents(config, trust) if name else (dict(config), None)
    tokenizer = build_tokenizer({**config, "media_shape": config.get("media_shape") or list(media_shape)}, trust)
    if inside is not None:
        getattr(tokenizer, name).load_state_dict(load(inside, trust=trust).tokenizer.state_dict())
    if not hasattr(tokenizer, "portable"):
        raise ConfigError(
            f"{type(tokenizer).__name__} as configured has random weights: train it with task=tokenizer, then give its bundle by "
            "tokenizer=from_bundle tokenizer.ckpt=PATH"
        )
    config = portable(tokenizer, {**config, "media_shape": list(tokenizer.spec.media_shape)})
    stamp(tokenizer, config)
    return Bundle("tokenizer", tokenizer.eval().requires_grad_(False), None, ConditionSpec(), _without_training(config))


def stamp(tokenizer: Any, config: Mapping[str, Any]) -> TokenSpec:
    """Puts fingerprints into tokenizer.spec and returns it: `encode` over every tensor and setting that codes depend on (all but the
    submodules named in tokenizer.decode_only), `decode` over the rest. Tensors count as float32."""
    decode_only = tuple(getattr(tokenizer, "decode_only", ("decoder",)))
    encode_state, decode_state = {}, {}
    for name, value in tokenizer.state_dict().items():
        part = decode_state if name.split(".")[0] in decode_only else encode_state
        part[name] = value.float() if value.is_floating_point() else value
    settings = {key: value for key, value in portable(tokenizer, config).items() if key not in TRAINING_ONLY}
    spec = replace(tokenizer.spec, encode_fingerprint="", decode_fingerprint="")
    meant = spec
    if spec.modality == "audio":  # how long the longest item is, is a matter of the data
        settings.pop("longest_text", None)
        settings["media_shape"], meant = list(spec.media_shape or ()), replace(spec, grid=replace(spec.grid, n=None))
    encode = fingerprint(settings, meant.to_dict(), encode_state)
    tokenizer.spec = replace(spec, encode_fingerprint=encode, decode_fingerprint=fingerprint(encode, decode_state))
    return tokenizer.spec


# ------------------------------------------------------------------------------------------------------------------- saving


def save(
    path: str | os.PathLike[str],
    *,
    tokenizer: Any,
    tokenizer_config: Mapping[str, Any],
    generator: Any | None = None,
    generator_config: Mapping[str, Any] | None = None,
    condition_spec: ConditionSpec | None = None,
    meta: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes a bundle folder, whole or not at all. dtype "bfloat16" halves the size; the fingerprint is that of the rounded weights.

    Raises ValueError where `path` is something else than a bundle.
    """
    from safetensors.torch import save_file

    path, tokenizer_config = Path(path), portable(tokenizer, tokenizer_config)
    if path.exists() and not (path / "bundle.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is no bundle: choose another path, or move it away")
    kept = tokenizer.spec
    state = _rounded(tokenizer.state_dict(), dtype)
    if dtype != "float32" or not kept.encode_fingerprint:
        rounded = build_tokenizer(tokenizer_config)
        rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        kept = stamp(rounded, tokenizer_config)
    document = {
        "format": FORMAT,
        "kind": "tokenizer" if generator is None else "generator",
        "gentok": __version__,
        "dtype": dtype,
        "tokenizer": {"config": _without_training(tokenizer_config), "spec": kept.to_dict()},
        "condition_spec": (condition_spec or ConditionSpec()).to_dict(),
        "meta": {**(meta or {}), "versions": {"python": platform.python_version(), "torch": torch.__version__}},
    }
    if generator is not None:
        document["generator"] = {"config": dict(generator_config or {}), "spec": generator.spec.to_dict()}
        if not generator.spec.same_codes(kept):
            raise ValueError(f"the generator models {generator.spec.describe()}; the tokenizer beside it makes {kept.describe()}")

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "tokenizer").mkdir(parents=True)
    save_file(state, temporary / "tokenizer" / "model.safetensors")
    if generator is not None:
        (temporary / "generator").mkdir()
        save_file(_rounded(generator.state_dict(), dtype), temporary / "generator" / "model.safetensors")
    (temporary / "README.md").write_text(_card(document))
    (temporary / "bundle.json").write_text(json.dumps(document, indent=1) + "\n")
    old = _last_good(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def _last_good(path: Path) -> Path:
    """Where the bundle of before lies between the two renames of `save`."""
    return path.with_name(f".{path.name}.last_good")


def _rounded(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    target = getattr(torch, dtype)
    return {k: (v.detach().to("cpu", target) if v.is_floating_point() else v.detach().cpu()).contiguous().clone() for k, v in state.items()}


def _without_training(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in TRAINING_ONLY}


def _card(document: Mapping[str, Any]) -> str:
    spec = TokenSpec.from_dict(document["tokenizer"]["spec"])
    bits = f"{spec.bits_per_second:.0f} bits per second" if spec.grid.positions is None else f"{spec.bits:.0f} bits per item"
    media = "sounds" if spec.modality == "audio" else "images"
    lines = [
        f"# A gentok {document['kind']}",
        "",
        f"Tokens: {spec.describe()}; {bits}.",
        "",
        "```python",
        "import gentok",
        'model = gentok.load("path/to/this/folder")',
        f"{media} = model.sample(n=16)" if document["kind"] == "generator" else f"tokens = model.tokenizer.encode({media})",
        "```",
        "",
    ]
    for key, value in document["meta"].items():
        lines.append(f"* {key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------------ loading


def load(path: str | os.PathLike[str], *, trust: Iterable[str] = (), device: torch.device | str = "cpu", ema: bool = True) -> Bundle:
    """A bundle folder, or a training checkpoint (.ckpt; averaged weights unless ema=False), in eval mode on `device`.

    trust: packages beside gentok whose components may be built. Raises FileNotFoundError, FormatError or ConfigError, each in a line.
    """
    if str(path) == "???":
        raise ConfigError("which model? Give a bundle folder or a training checkpoint: ckpt=PATH")
    path = Path(path)
    if not path.exists() and (_last_good(path) / "bundle.json").is_file():
        path = _last_good(path)  # a kill fell between the two renames of `save`
    if not path.exists():
        raise FileNotFoundError(f"there is no bundle or checkpoint at {path}{neighbours(path)}")
    if path.is_dir() and not (path / "bundle.json").is_file():
        found = sorted(str(p.parent) for p in path.glob("*/bundle.json"))
        raise FileNotFoundError(f"{path} is a folder without bundle.json" + (f"; bundles inside it: {', '.join(found)}" if found else ""))
    document, tokenizer_state, generator_state = read_folder(path) if path.is_dir() else read_checkpoint(path, ema)

    spec = TokenSpec.from_dict(document["tokenizer"]["spec"])
    tokenizer = build_tokenizer(document["tokenizer"]["config"], trust)
    load_state(tokenizer, tokenizer_state, f"the tokenizer in {path}")
    tokenizer.spec = spec
    if spec.encode_fingerprint:
        made = stamp(tokenizer, document["tokenizer"]["config"])
        if made != spec:
            raise FormatError(
                f"the tokenizer in {path} is not the one that its header describes ({made.describe()} against "
                f"{spec.describe()}): it was changed or damaged"
            )
    condition_spec = ConditionSpec.from_dict(document["condition_spec"])
    generator, generator_config = None, None
    if document["kind"] == "generator":
        generator_config = document["generator"]["config"]
        meant = TokenSpec.from_dict(document["generator"]["spec"])
        if not meant.same_codes(spec):
            raise FormatError(f"the generator in {path} models {meant.describe()}, but the tokenizer beside it makes {spec.describe()}")
        generator = build_generator(generator_config, tokenizer, condition_spec, trust)
        load_state(generator, generator_state, f"the generator in {path}")
        generator.eval().requires_grad_(False)
    tokenizer.eval().requires_grad_(False)
    bundle = Bundle(
        document["kind"],
        tokenizer,
        generator,
        condition_spec,
        dict(document["tokenizer"]["config"]),
        generator_config,
        document["meta"],
        str(path),
    )
    return bundle.to(device)
