"""From a loaded model to new media: what sample.py, `Bundle.sample`, evaluation and the training log share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gentok.build import build, resolve
from gentok.errors import ConfigError, nearest_name
from gentok.generators.base import capabilities
from gentok.prompt import frames_of, known_tokens
from gentok.rng import RowRNG
from gentok.samplers.base import SampleOutput, Sampler, every_sampler, fitting, sampler_name
from gentok.samplers.guided import guided
from gentok.types import Condition, ConditionSpec, Tokens

if TYPE_CHECKING:
    from gentok.bundle import Bundle

__all__ = ["Samples", "configured_sampler", "pick_sampler", "sample", "sample_tokens"]


@dataclass
class Samples:
    """media float [n, ...] in [-1, 1]; tokens of all of them; calls int64 [n]; network_calls: name -> (calls, positions); seconds.

    lengths int64 [n]: of sounds, the samples of each; what lies behind is no part of it. texts: of streams of text and speech.
    """

    media: Tensor
    tokens: Tokens
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    seconds: float
    stats: dict[str, Any]
    lengths: Tensor | None = None
    texts: list[str] | None = None


# ------------------------------------------------------------------------------------------------------------------ samplers


def pick_sampler(config: Mapping[str, Any] | Sampler | None, generator: type, trust: Any = ()) -> Sampler:
    """A sampler from its configuration, checked against the generator's class before it is built; without `_target_`, the first that
    fits (exact ones come first)."""
    if isinstance(config, Sampler):
        config.check_model(generator)
        return config
    config = dict(config or {})
    if config.get("_target_") is None:
        able = fitting(generator)
        if not able:
            raise ConfigError(f"no sampler of gentok fits {generator.__name__} ({', '.join(capabilities(generator)) or 'no capability'})")
        config["_target_"] = able[0].component_id
    else:
        resolve(config["_target_"], trust).check_model(generator)
    return build(config, trust=trust, where="sampler", role=Sampler)


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
    return pick_sampler({"_target_": names.get(sampler), **settings}, generator)


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
    """One batch: `sampler` on the guided generator, without gradients."""
    with torch.no_grad():
        return sampler(guided(generator, guidance, schedule), condition, rng=rng, **options)


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
    advance: Callable[[int], None] | None = None,
    trust: Any = (),
) -> Samples:
    """n samples of a generator's bundle; item i depends on (seed, i) alone, not on the batch it is drawn in.

    condition: see ConditionSpec.parse; or a Condition of n rows. guidance: None takes the bundle's recommendation, else 1. known: an
    image [C, H, W] or a sound [C, T] in [-1, 1] to complete, of which `keep` stays: a region of the image (by default its left half),
    the first seconds of the sound (by default all). duration: of sounds, in seconds, one number or several in turn; by default as long as
    the model's longest item, at which a model that ends items by itself is cut. Of streams of text and speech: the text of condition is
    spoken, the sound `known` is written down, and with both that sound goes on (its first `keep` seconds).
    advance(items): called with 0 once all is checked, and after each batch. Raises ValueError in a line.
    """
    if bundle.generator is None:
        raise ValueError(f"{bundle.path or 'this bundle'} holds a tokenizer alone: sampling needs a generator's bundle or checkpoint")
    if n < 1:
        raise ValueError(f"n={n}: the number of samples must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    device = next(bundle.generator.parameters()).device
    sampler = pick_sampler(sampler, type(bundle.generator), trust)
    guidance = guidance if guidance is not None else bundle.meta.get("guidance", 1.0)
    tokenizer, written = bundle.tokenizer, bundle.tokenizer.written_condition
    understood = ConditionSpec(bundle.condition_spec.parts + written.parts)
    conditions = condition if isinstance(condition, Condition) else understood.parse(condition, n)
    frames = frames_of(duration, n, bundle.spec)
    given = None if known is None else known.to(device)
    begun = known_tokens(bundle.tokenizer, conditions.to(device), given, keep, frames)
    if advance is not None:
        advance(0)
    media, codes, ends, lengths, texts, calls, network, stats, seconds = [], [], [], [], [], [], {}, {}, 0.0
    for first in range(0, n, batch_size):
        rows = torch.arange(first, min(first + batch_size, n))
        began = time.perf_counter()
        output = sample_tokens(
            bundle.generator, conditions.rows(rows).to(device), sampler, rng=RowRNG.of(seed, rows).to(device), guidance=guidance,
            schedule=guidance_schedule, lengths=None if frames is None else frames[rows],
            known=None if begun is None else Tokens(begun.codes[rows % len(begun.codes)].clone(), bundle.spec),
        )  # fmt: skip
        seconds += time.perf_counter() - began
        with torch.no_grad():
            media.append(tokenizer.decode(output.tokens).float().cpu())
        codes.append(output.tokens.codes.cpu())
        if output.tokens.lengths is not None:  # those that were asked for, or where a model that ends items ended them
            ends.append(output.tokens.lengths.cpu())
            lengths.append(tokenizer.samples_of(output.tokens, media[-1]).cpu())
        texts += tokenizer.text(output.tokens) or []
        calls.append(output.calls.cpu())
        stats.update(output.stats)
        for name, (count, positions) in output.network_calls.items():
            before = network.get(name, (0, 0))
            network[name] = (before[0] + count, before[1] + positions)
        if advance is not None:
            advance(len(rows))
    longest = max(part.shape[-1] for part in media)
    media = [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in media]  # streams of text and speech differ
    tokens = Tokens(torch.cat(codes), bundle.spec, torch.cat(ends) if ends else None)
    return Samples(
        torch.cat(media), tokens, torch.cat(calls), network, seconds, stats, torch.cat(lengths) if lengths else None,
        texts or None,
    )  # fmt: skip
