"""A request for samples, checked whole before anything is drawn, then drawn part by part.

Item i depends on (seed, i) alone. The parts are those of one process however many share them, since a part's items are computed together
and their last bits depend on how many these are: so two processes write what one does, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gentok.nn.text_encoder import TextEncoder
from gentok.prompt import frames_of, known_tokens
from gentok.rng import RowRNG
from gentok.samplers.base import Sampler, described
from gentok.samplers.draws import Mark
from gentok.samplers.guided import guided
from gentok.samplers.request import Joining, NetworkCalls, SampleOutput
from gentok.types import KEEP_TEXT, TEXT, Condition, ConditionSpec, Latents, Tokens

if TYPE_CHECKING:
    from gentok.bundle import Bundle

__all__ = ["Samples", "SamplingPlan", "decoded", "draw_together", "joined", "sample_tokens", "split", "tokens_together"]

_TURNS = 16  # items for each place of a batch that are drawn together, where rows differ in length and can take the places of others


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
        log_weight: float64 [n], of samplers whose items are weighted (constrained, coarse_to_fine with known ids): items follow the
            sampler's distribution when each counts exp(log_weight), and one of -inf does not count. None: all count the same.
    """

    media: Tensor
    tokens: Any
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    seconds: float
    stats: dict[str, Any]
    lengths: Tensor | None = None
    texts: list[str] | None = None
    log_weight: Tensor | None = None


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


class SamplingPlan:
    """What is to be sampled.

    Args:
        bundle: a tokenizer and a generator.
        sampler: one that fits the generator.
        n, condition, guidance, guidance_schedule, seed, known, keep, duration, batch_size, text_encoder: those of
            gentok.sampling.sample.
        mark: a watermark with its key; None: none.

    Attributes:
        conditions: of the n items.
        mark: as given.
        parts: the items that are drawn together, range by range.

    Raises:
        ValueError: what is asked for does not fit the bundle.
    """

    def __init__(
        self, bundle: Bundle, sampler: Sampler, *, n: int, condition: Any = None, guidance: float | None = None,
        guidance_schedule: str = "constant", seed: int = 0, known: Tensor | None = None, keep: str | float | Tensor | None = None,
        duration: float | str | Sequence[float | str] | None = None, batch_size: int = 64, text_encoder: str | None = None,
        mark: Mark | None = None,
    ):  # fmt: skip
        if n < 1:
            raise ValueError(f"n={n}: the number of samples must be at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.bundle, self.sampler, self.seed, self.schedule = bundle, sampler, seed, guidance_schedule
        self.guidance = guidance if guidance is not None else bundle.meta.get("guidance", 1.0)
        self._batch_size, self.mark = batch_size, mark
        tokenizer = bundle.tokenizer
        spec = ConditionSpec(bundle.condition_spec.parts + tokenizer.asked_condition.parts)
        encode = None if text_encoder is None else TextEncoder(text_encoder).of_condition
        self.conditions = condition if isinstance(condition, Condition) else spec.parse(condition, n, encode)
        if KEEP_TEXT in self.conditions.parts and TEXT in dict(tokenizer.written_condition.parts):
            raise ValueError("condition.keep_text: this model has its text among its tokens, and reads all of it: leave it out")
        self._frames = frames_of(duration, n, bundle.spec)
        on_device = self.conditions.to(self._device), None if known is None else known.to(self._device)
        self._prompt = known_tokens(tokenizer, *on_device, keep, self._frames)
        unequal = getattr(bundle.generator, "ends", False) or (self._frames is not None and len(self._frames.unique()) > 1)
        self._joins = unequal and sampler.joins and getattr(bundle.generator, "moves_rows", False)
        together = batch_size * _TURNS if self._joins else batch_size
        self.parts = [range(first, min(first + together, n)) for first in range(0, n, together)]

    @property
    def _device(self) -> torch.device:
        return next(self.bundle.generator.parameters()).device  # type: ignore[union-attr]

    def draw(self, part: range, advance: Callable[[int], None] = lambda n: None) -> Samples:
        """The items of one of `parts`. advance: called with how many are done since the last time."""
        return draw_together([(self, torch.tensor(part))], advance)

    @property
    def kind(self) -> str:
        """Items of plans of the same bundle, mark and kind can be drawn together."""
        shapes = [[value.shape[1:] for value in vars(part).values()] for part in self.conditions.parts.values()]
        sized = self._frames is not None, self._prompt is not None, self._joins
        return repr((described(self.sampler), self.guidance, self.schedule, sized, shapes))

    @property
    def open(self) -> bool:
        """Whether items of other plans of its kind may join a batch of its items between two steps (samplers/request.py, Arrivals)."""
        return self.sampler.joins and getattr(self.bundle.generator, "moves_rows", False) and self._prompt is None and self.mark is None

    @property
    def shares(self) -> bool:
        """Whether batches of plans of its kind can share network calls, whatever steps they are at (serving/shared_calls.py)."""
        return bool(self.sampler.requires.rowwise)

    def rows(self, rows: Tensor) -> Joining:
        """What items int64 [b] are drawn from."""
        lengths = None if self._frames is None else self._frames[rows].to(self._device)
        return Joining(self.conditions.rows(rows).to(self._device), RowRNG.of(self.seed, rows).to(self._device), lengths)

    def _prompt_rows(self, rows: Tensor) -> Tokens | Latents | None:
        prompt = self._prompt
        return None if prompt is None else replace(prompt.rows(rows % prompt.batch), spec=self.bundle.spec, lengths=None)


def draw_together(some: Sequence[tuple[SamplingPlan, Tensor]], advance: Callable[[int], None] = lambda n: None, **options: Any) -> Samples:
    """Items of one plan, or of several of the same kind, in one batch. Each depends on its own plan's seed and on its number there alone.

    Args:
        some: plans of one bundle, mark and `kind`, and the numbers of their items, int64 [b].
        advance: as of SamplingPlan.draw.
        options: those of tokens_together.

    Returns:
        Samples: all of them, plan by plan.
    """
    began = time.perf_counter()
    output = tokens_together(some, **options)
    return decoded(some[0][0], output, time.perf_counter() - began, advance)


def tokens_together(
    some: Sequence[tuple[SamplingPlan, Tensor]], options: Mapping[str, Any] | None = None, generator: Any = None
) -> SampleOutput:
    """`draw_together` without its media.

    Args:
        some: as there.
        options: further arguments of the sampler; None: none.
        generator: in the place of the bundle's; None: that.
    """
    plan, device, at_once = some[0][0], some[0][0]._device, some[0][0]._batch_size
    own: dict[str, Any] = {"at_once": at_once} if plan._joins else {}
    if plan.mark is not None:
        own["mark"] = plan.mark
    if plan._frames is not None:
        own["lengths"] = torch.cat([one._frames[rows] for one, rows in some])  # type: ignore[index]
    if plan._prompt is not None:
        own["known"] = _stacked([one._prompt_rows(rows) for one, rows in some])
    conditions = Condition.concat([one.conditions.rows(rows) for one, rows in some])
    rng = RowRNG.concat([RowRNG.of(one.seed, rows) for one, rows in some])
    return sample_tokens(
        generator or plan.bundle.generator, conditions.to(device), plan.sampler, rng=rng.to(device), guidance=plan.guidance,
        schedule=plan.schedule, **{**own, **(options or {})},
    )  # fmt: skip


def decoded(plan: SamplingPlan, output: SampleOutput, seconds: float, advance: Callable[[int], None] = lambda n: None) -> Samples:
    """What a sampler made, with its media.

    Args:
        plan: of a model.
        output: drawn by it.
        seconds: that drawing took.
        advance: as of SamplingPlan.draw.
    """
    tokenizer = plan.bundle.tokenizer
    media, lengths, texts = [], [], []
    for part in map(output.tokens.rows, torch.arange(len(output.calls), device=plan._device).split(plan._batch_size)):
        with torch.no_grad():
            media.append(tokenizer.decode(part).float().cpu())
        counted = tokenizer.samples_of(part, media[-1])
        lengths += [] if counted is None else [counted.cpu()]
        texts += tokenizer.text(part) or []
        advance(part.batch)
    return Samples(
        media=_longest(media), tokens=replace(output.tokens.to("cpu"), spec=plan.bundle.spec), calls=output.calls.cpu(),
        network_calls=dict(output.network_calls),
        seconds=seconds,
        stats=dict(output.stats),
        lengths=torch.cat(lengths) if lengths else None,
        texts=texts or None,
        log_weight=None if output.log_weight is None else output.log_weight.cpu(),
    )  # fmt: skip


def _stacked(parts: Sequence[Any]) -> Any:
    """Tokens or Latents of several plans as one."""
    if len(parts) == 1:
        return parts[0]
    name = "values" if isinstance(parts[0], Latents) else "codes"
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts])})


def _longest(media: Sequence[Tensor]) -> Tensor:
    """Batches as one; streams of text and speech may differ in length from batch to batch."""
    longest = max(part.shape[-1] for part in media)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in media])


def joined(parts: Sequence[Samples]) -> Samples:
    """The parts of a plan, in their order, as one."""
    first = parts[0].tokens
    latents = isinstance(first, Latents)
    made = torch.cat([part.tokens.values if latents else part.tokens.codes for part in parts])
    lengths = [part.tokens.lengths for part in parts if part.tokens.lengths is not None]  # asked for, or where a model ended items
    samples = [part.lengths for part in parts if part.lengths is not None]
    weights = [part.log_weight for part in parts if part.log_weight is not None]
    network_calls = NetworkCalls()
    for part in parts:
        network_calls.merge(part.network_calls)
    return Samples(
        media=_longest([part.media for part in parts]),
        tokens=(Latents if latents else Tokens)(made, first.spec, torch.cat(lengths) if lengths else None),
        calls=torch.cat([part.calls for part in parts]),
        network_calls=dict(network_calls),
        seconds=sum(part.seconds for part in parts),
        stats=_merged(part.stats for part in parts),
        lengths=torch.cat(samples) if samples else None,
        texts=[text for part in parts for text in part.texts or []] or None,
        log_weight=torch.cat(weights) if weights else None,
    )


def split(samples: Samples, counts: Sequence[int]) -> list[Samples]:
    """Consecutive items of some samples, each part by itself. Calls of networks, seconds and stats are those of the whole."""
    made, first = [], 0
    for count in counts:
        rows = torch.arange(first, first + count)
        tokens, lengths, texts = samples.tokens.rows(rows), samples.lengths, samples.texts
        made.append(
            replace(
                samples, media=samples.media[rows], tokens=tokens, calls=samples.calls[rows],
                lengths=None if lengths is None else lengths[rows], texts=texts and texts[first : first + count],
                log_weight=None if samples.log_weight is None else samples.log_weight[rows],
            )
        )  # fmt: skip
        first += count
    return made


def _merged(stats: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for some in stats:
        merged |= some
    return merged
