"""From a loaded model to new media: what sample.py, `Bundle.sample`, evaluation and the training log
share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gentok.build import build, resolve
from gentok.errors import ConfigError, check_choice, nearest_name
from gentok.generators.base import capabilities
from gentok.interfaces import Tokenizer
from gentok.nn.linear import quantize
from gentok.samplers.base import Sampler, every_sampler, fitting, sampler_name
from gentok.sampling_plan import Samples, SamplingPlan, joined, sample_tokens
from gentok.types.media import as_media
from gentok.watermarks.base import KeyMark, Watermark
from gentok.watermarks.key import Key

if TYPE_CHECKING:
    from gentok.bundle import Bundle

__all__ = [
    "Samples", "as_known", "configured_sampler", "key_mark", "load_generator", "lower_precision", "pick_sampler", "planned", "sample",
    "sample_tokens", "watermark_report",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ samplers


def pick_sampler(config: Mapping[str, Any] | Sampler | None, generator: type, trust: Any = ()) -> Sampler:
    """A sampler that fits a generator, checked before it is built.

    Args:
        config: its configuration, or a built one. Without `_target_`: the first that fits; exact ones come
            first.
        generator: the generator's class.
        trust: packages whose components may be built, beside gentok's own.

    Raises:
        ConfigError: no sampler fits, or the configuration cannot be built.
        ValueError: it does not fit the generator.
    """
    if isinstance(config, Sampler):
        config.check_model(generator)
        return config.with_models(load_generator)
    config = dict(config or {})
    if config.get("_target_") is None:
        able = fitting(generator)
        if not able:
            raise ConfigError(f"no sampler of gentok fits {generator.__name__} ({', '.join(capabilities(generator)) or 'no capability'})")
        config["_target_"] = able[0].component_id
    else:
        resolve(config["_target_"], trust).check_model(generator)
    return build(config, trust=trust, where="sampler", role=Sampler).with_models(load_generator)


def load_generator(path: str) -> Any:
    """The generator of a bundle or checkpoint. Raises ValueError where it holds none."""
    from gentok.bundle import load

    bundle = load(path)
    if bundle.generator is None:
        raise ValueError(f"{path} holds a tokenizer alone; drafts need a generator's bundle or checkpoint")
    return bundle.generator


def configured_sampler(sampler: str | Sampler | None, generator: type, settings: Mapping[str, Any]) -> Sampler:
    """A sampler by name with some of its settings.

    Args:
        sampler: its name in conf/sampler, a built one, or None for the first that fits.
        generator: the generator's class.
        settings: {name: value} of the sampler's own parameters.

    Raises:
        ConfigError: there is no such sampler, or it has no such setting.
        ValueError: it does not fit the generator.
    """
    if isinstance(sampler, Sampler):
        return pick_sampler(dataclasses.replace(sampler, **settings), generator)
    names = {sampler_name(cls): cls.component_id for cls in every_sampler()}
    if sampler is not None and sampler not in names:
        raise ConfigError(f"sampler={sampler!r}: there is none of that name{nearest_name(str(sampler), names)}")
    return pick_sampler({"_target_": names[sampler] if sampler else None, **settings}, generator)


# ---------------------------------------------------------------------------------------------------------------- watermarks


def key_mark(watermark: Mapping[str, Any] | Watermark, key: Key | str | None, bundle: Bundle, trust: Any = ()) -> KeyMark:
    """A watermark for a model's tokens.

    Args:
        watermark: its configuration, or a built one.
        key: as in `sample`.
        bundle: the model, of which the tokenizer is looked at.
        trust: packages whose components may be built, beside gentok's own.

    Raises:
        ValueError: the key cannot be read, or the watermark does not fit the tokens.
    """
    secret = key if isinstance(key, Key) else Key.read(key)
    return KeyMark(_watermark(watermark, trust), secret, bundle.spec, bundle.tokenizer.codebook)


def watermark_report(watermark: Mapping[str, Any] | Watermark, trust: Any = ()) -> dict[str, Any]:
    """What reports say of a watermark: its name, its settings, whether single items keep their distribution; nothing of the key."""
    built = _watermark(watermark, trust)
    name = type(built).__module__.rpartition(".")[2]
    return {"name": name, "distortion_free": built.distortion_free, **dataclasses.asdict(built)}


def _watermark(config: Mapping[str, Any] | Watermark, trust: Any) -> Watermark:
    return config if isinstance(config, Watermark) else build(dict(config), trust=trust, where="watermark", role=Watermark)


# ----------------------------------------------------------------------------------------------------------------- precision


def lower_precision(generator: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """Changes the weights that a generator samples with, in place, and returns it.

    Args:
        generator: for inference.
        dtype: float32; bfloat16: all weights; int8: the matrices of its transformers, and its head where it is causal, by integers with
            a scale per output (gentok/nn/linear.py).

    Raises:
        ValueError: another dtype.
    """
    check_choice("dtype", dtype, ("float32", "bfloat16", "int8"))
    if dtype == "int8":
        return quantize(generator)
    return generator.to(torch.bfloat16) if dtype == "bfloat16" else generator


# ------------------------------------------------------------------------------------------------------------------ sampling


def sample(
    bundle: Bundle,
    *,
    n: int = 16,
    condition: Any = None,
    sampler: Mapping[str, Any] | Sampler | None = None,
    guidance: float | None = None,
    guidance_schedule: str = "constant",
    seed: int = 0,
    known: Tensor | None = None,
    keep: str | float | Tensor | None = None,
    duration: float | str | Sequence[float | str] | None = None,
    batch_size: int = 64,
    text_encoder: str | None = None,
    watermark: Mapping[str, Any] | Watermark | None = None,
    key: Key | str | None = None,
    advance: Callable[[int], None] | None = None,
    trust: Any = (),
) -> Samples:
    """Samples of a generator's bundle. Item i depends on (seed, i) alone, not on the batch it is drawn in.

    Args:
        bundle: a tokenizer and a generator.
        n: how many, >= 1.
        condition: see ConditionSpec.parse; or a Condition of n rows. Of streams of text and speech: the text
            is spoken.
        sampler: see `pick_sampler`.
        guidance: None takes the bundle's recommendation, else 1.
        guidance_schedule: constant, linear, cosine or cosine:POWER.
        seed: of the random numbers.
        known: an image [C, H, W] or a sound [C, T] in [-1, 1] to complete. Of streams of text and speech: the
            sound is written down; with a text too, that sound goes on.
        keep: what stays of `known`: a region of the image (None: its left half) or a mask [H, W] of it, 1 where it stays; or the first
            seconds of the sound (None: all).
        duration: of sounds, in seconds, one number or several in turn; None: as long as the model's longest
            item, at which a model that ends items by itself is cut.
        batch_size: items that are drawn at once, >= 1.
        text_encoder: the folder of the encoder whose vectors the model is conditioned on, where `condition` has
            texts.
        watermark: its configuration, or a built one (gentok/watermarks); None: none.
        key: of the watermark: the secret, or the path of its file; None: the environment variable GENTOK_WATERMARK_KEY.
        advance: called with 0 once all is checked, and with the number of items after each batch.
        trust: packages whose components may be built, beside gentok's own.

    Raises:
        ValueError: what is asked for does not fit the bundle.
    """
    plan = planned(
        bundle, sampler, trust, n=n, condition=condition, guidance=guidance, guidance_schedule=guidance_schedule, seed=seed, known=known,
        keep=keep, duration=duration, batch_size=batch_size, text_encoder=text_encoder, watermark=watermark, key=key,
    )  # fmt: skip
    advance = advance or (lambda items: None)
    advance(0)
    return joined([plan.draw(part, advance) for part in plan.parts])


def as_known(known: Any, tokenizer: Tokenizer) -> Tensor:
    """What a program has to be completed, media or an SVG file's path or bytes, as `known_tokens` takes it. Raises ValueError."""
    return tokenizer.read_drawing(known) if tokenizer.draws else as_media(known, (tokenizer.spec.media_shape or (None,))[0])


def planned(
    bundle: Bundle, sampler: Mapping[str, Any] | Sampler | None = None, trust: Any = (), *,
    watermark: Mapping[str, Any] | Watermark | None = None, key: Key | str | None = None, **request: Any,
) -> SamplingPlan:  # fmt: skip
    """Samples that are still to be drawn: all is checked.

    Args:
        bundle, sampler, trust, watermark, key, request: those of `sample`; request: the others.

    Raises:
        ValueError: what is asked for does not fit the bundle.
    """
    if bundle.generator is None:
        raise ValueError(f"{bundle.path or 'this bundle'} holds a tokenizer alone: sampling needs a generator's bundle or checkpoint")
    picked, mark = pick_sampler(sampler, type(bundle.generator), trust), None
    if watermark is not None:
        picked.check_marks()
        mark = key_mark(watermark, key, bundle, trust)
    return SamplingPlan(bundle, picked, mark=mark, **request)
