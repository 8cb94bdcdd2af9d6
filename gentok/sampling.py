"""From a loaded model to new media: what sample.py, `Bundle.sample`, evaluation and the training log
share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gentok.build import build, resolve
from gentok.errors import ConfigError, check_choice, nearest_name
from gentok.generators.base import capabilities
from gentok.nn.linear import quantize
from gentok.nn.text_encoder import TextEncoder
from gentok.prompt import frames_of, known_tokens
from gentok.rng import RowRNG
from gentok.samplers.base import Sampler, every_sampler, fitting, sampler_name
from gentok.samplers.guided import guided
from gentok.samplers.request import NetworkCalls, SampleOutput
from gentok.types import Condition, ConditionSpec, Latents, Tokens
from gentok.watermarks.base import KeyMark, Watermark
from gentok.watermarks.key import Key

if TYPE_CHECKING:
    from gentok.bundle import Bundle

__all__ = ["Samples", "configured_sampler", "key_mark", "lower_precision", "pick_sampler", "sample", "sample_tokens"]


_TURNS = 16
"""So many items for each place of a batch are drawn together, where rows differ in length and can take the places of others."""


@dataclass
class Samples:
    """New media.

    Attributes:
        media: float [n, ...] in [-1, 1].
        tokens: of all of them; Latents of a generator of latents.
        calls: int64 [n], network calls that each needed.
        network_calls: name of a network -> (calls, positions computed).
        seconds: that sampling took, without decoding.
        stats: named numbers of the sampler.
        lengths: int64 [n], of sounds: the samples of each; what lies behind does not belong to it. None: all
            of the media.
        texts: of streams of text and speech.
    """

    media: Tensor
    tokens: Any
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    seconds: float
    stats: dict[str, Any]
    lengths: Tensor | None = None
    texts: list[str] | None = None


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
        return config.with_models(_generator)
    config = dict(config or {})
    if config.get("_target_") is None:
        able = fitting(generator)
        if not able:
            raise ConfigError(f"no sampler of gentok fits {generator.__name__} ({', '.join(capabilities(generator)) or 'no capability'})")
        config["_target_"] = able[0].component_id
    else:
        resolve(config["_target_"], trust).check_model(generator)
    return build(config, trust=trust, where="sampler", role=Sampler).with_models(_generator)


def _generator(path: str) -> Any:
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


def sample_tokens(
    generator: Any,
    condition: Condition,
    sampler: Sampler,
    *,
    rng: RowRNG,
    guidance: float = 1.0,
    schedule: str = "constant",
    **options: Any,
) -> SampleOutput:
    """One batch of tokens, without gradients.

    Args:
        generator: with the capability that the sampler needs.
        condition: of B rows.
        sampler: draws them.
        rng: of B rows.
        guidance: classifier-free guidance, 1: none.
        schedule: of the guidance (flow/guidance.py).
        options: further arguments of `Sampler.__call__`, such as known and lengths.
    """
    with torch.no_grad():
        return sampler(guided(generator, guidance, schedule), condition, rng=rng, **options)


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
    built = watermark if isinstance(watermark, Watermark) else build(dict(watermark), trust=trust, where="watermark", role=Watermark)
    return KeyMark(built, key if isinstance(key, Key) else Key.read(key), bundle.spec, bundle.tokenizer.codebook)


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
    keep: str | float | None = None,
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
        guidance_schedule: constant, linear or cosine.
        seed: of the random numbers.
        known: an image [C, H, W] or a sound [C, T] in [-1, 1] to complete. Of streams of text and speech: the
            sound is written down; with a text too, that sound goes on.
        keep: what stays of `known`: a region of the image (None: its left half), or the first seconds of the
            sound (None: all).
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
    if bundle.generator is None:
        raise ValueError(f"{bundle.path or 'this bundle'} holds a tokenizer alone: sampling needs a generator's bundle or checkpoint")
    if n < 1:
        raise ValueError(f"n={n}: the number of samples must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    device = next(bundle.generator.parameters()).device
    sampler = pick_sampler(sampler, type(bundle.generator), trust)
    mark = None
    if watermark is not None:
        sampler.check_marks()
        mark = key_mark(watermark, key, bundle, trust)
    guidance = guidance if guidance is not None else bundle.meta.get("guidance", 1.0)
    tokenizer = bundle.tokenizer
    spec = ConditionSpec(bundle.condition_spec.parts + tokenizer.written_condition.parts)
    encode = None if text_encoder is None else TextEncoder(text_encoder).of_condition
    conditions = condition if isinstance(condition, Condition) else spec.parse(condition, n, encode)
    frames = frames_of(duration, n, bundle.spec)
    prompt = known_tokens(tokenizer, conditions.to(device), None if known is None else known.to(device), keep, frames)
    advance = advance or (lambda items: None)
    advance(0)
    outputs, parts, media, seconds = [], [], [], 0.0
    unequal = getattr(bundle.generator, "ends", False) or (frames is not None and len(frames.unique()) > 1)
    joins = unequal and sampler.joins and getattr(bundle.generator, "moves_rows", False)
    together = batch_size * _TURNS if joins else batch_size
    for first in range(0, n, together):
        rows = torch.arange(first, min(first + together, n))
        began = time.perf_counter()
        output = sample_tokens(
            bundle.generator, conditions.rows(rows).to(device), sampler, rng=RowRNG.of(seed, rows).to(device), guidance=guidance,
            schedule=guidance_schedule, lengths=None if frames is None else frames[rows],
            known=None if prompt is None else replace(prompt.rows(rows % prompt.batch), spec=bundle.spec, lengths=None),
            **({"at_once": batch_size} if joins else {}), **({} if mark is None else {"mark": mark}),
        )  # fmt: skip
        seconds += time.perf_counter() - began
        outputs.append(output)
        for part in map(output.tokens.rows, torch.arange(len(rows), device=device).split(batch_size)):
            with torch.no_grad():
                media.append(tokenizer.decode(part).float().cpu())
            parts.append(part)
            advance(part.batch)
    return _gathered(bundle, outputs, parts, media, seconds)


def _gathered(bundle: Bundle, outputs: list[SampleOutput], parts: list[Any], media: list[Tensor], seconds: float) -> Samples:
    """The batches as one; parts: the tokens of each of `media`. Streams of text and speech may differ in length from batch to batch."""
    tokenizer, latents = bundle.tokenizer, isinstance(parts[0], Latents)
    made = torch.cat([o.tokens.values if latents else o.tokens.codes for o in outputs]).cpu()
    lengths = [o.tokens.lengths for o in outputs if o.tokens.lengths is not None]  # asked for, or where a model ended items
    counted = [tokenizer.samples_of(part, m) for part, m in zip(parts, media)]
    samples = [n.cpu() for n in counted if n is not None]
    network_calls = NetworkCalls()
    for output in outputs:
        network_calls.merge(output.network_calls)
    longest = max(part.shape[-1] for part in media)
    return Samples(
        media=torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in media]),
        tokens=(Latents if latents else Tokens)(made, bundle.spec, torch.cat(lengths).cpu() if lengths else None),
        calls=torch.cat([o.calls for o in outputs]).cpu(),
        network_calls=dict(network_calls),
        seconds=seconds,
        stats={name: value for o in outputs for name, value in o.stats.items()},
        lengths=torch.cat(samples) if samples else None,
        texts=[text for part in parts for text in tokenizer.text(part) or []] or None,
    )
