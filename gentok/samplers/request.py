"""What goes into a sampler and what comes out: the checked request, the start of the items, the output and
its network calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gentok.generators.base import Capability
from gentok.samplers.draws import Choice, Mark, check_finite, draw
from gentok.types import ABSENT, Condition, Latents, RowRNG, Tokens, TokenSpec

__all__ = ["Arrivals", "Joining", "NetworkCalls", "OnStep", "SampleOutput", "SampleRequest", "initial_tokens"]

OnStep = Callable[[Any, int, int], None]
"""(tokens so far, step, steps); of latents these, NaN where nothing is drawn yet."""


@dataclass
class SampleOutput:
    """What a sampler made.

    Attributes:
        tokens: B items, valid for their spec; Latents of a generator of latents.
        calls: int64 [B], network calls that each row needed.
        network_calls: name of a network -> (calls, positions computed over the batch).
        log_weight: float64 [B], log importance weights, of samplers that have them.
        trace: whatever a sampler records of its way.
        stats: named numbers of the whole batch, such as accepted drafts.
    """

    tokens: Any
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    log_weight: Tensor | None = None
    trace: Any = None
    stats: dict[str, Any] = field(default_factory=dict)


class NetworkCalls(dict[str, tuple[int, int]]):
    """Network calls as they happen: name -> (calls, positions computed over the batch)."""

    def add(self, model: Capability, positions: int, name: str = "generator") -> None:
        """One call on `positions` positions of the batch; a guided model computes each of them once per
        branch."""
        self.merge({name: (1, positions * model.branches)})

    def merge(self, others: Mapping[str, tuple[int, int]]) -> None:
        """Adds the calls of another batch."""
        for name, (calls, positions) in others.items():
            before = self.get(name, (0, 0))
            self[name] = (before[0] + calls, before[1] + positions)


@dataclass(frozen=True)
class Joining:
    """Rows that come while others are drawn.

    Attributes:
        condition: of b rows.
        rng: of these rows.
        lengths: int64 [b], in positions; None: the spec's.
    """

    condition: Condition
    rng: RowRNG
    lengths: Tensor | None = None


class Arrivals(ABC):
    """Who joins a batch between its steps and leaves it before its end, of samplers whose rows can wait (`joins`) and models that can
    move rows. Rows are numbered in the order in which they come."""

    @abstractmethod
    def join(self, room: int) -> Joining | None:
        """Asked before every call.

        Args:
            room: how many more rows could be computed at once.

        Returns:
            Joining; None: nobody comes now. The batch ends when it has no row to draw and nobody comes.
        """

    @abstractmethod
    def leave(self, rows: list[int], tokens: Tokens, calls: list[int], rng: RowRNG) -> None:
        """Takes rows that are done.

        Args:
            rows: b numbers.
            tokens: b items.
            calls: b numbers, the network calls that each needed.
            rng: of these rows, as far as they have drawn.
        """


@dataclass(frozen=True)
class SampleRequest:
    """What a sampler is asked for, already checked.

    Attributes:
        model: a generator of the sampler's capability.
        condition: of B rows.
        rng: of B rows.
        tokens: what the items start from: codes >= 0 where they are known, UNKNOWN where they are to be
            drawn, ABSENT elsewhere. Samplers may write into these codes. Of a generator of latents: Latents,
            NaN where they are to be drawn.
        draft: of B rows like `tokens`, for samplers that start from one; None: none.
        choose: how ids are drawn from filtered logits.
        mark: the watermark of ids that are drawn at their cells, `choose_at`; None: none.
        on_step: called after every step, see `report`.
        network_calls: those that were made so far, shared by all requests made of this one.
        at_once: rows that are computed together at most; None: all.
        arrivals: who joins later; None: nobody.
    """

    model: Any
    condition: Condition
    rng: RowRNG
    tokens: Any
    draft: Tokens | None = None
    choose: Choice = draw
    mark: Mark | None = None
    on_step: OnStep | None = None
    network_calls: NetworkCalls = field(default_factory=NetworkCalls)
    at_once: int | None = None
    arrivals: Arrivals | None = None

    def with_codes(self, codes: Tensor) -> Tokens:
        """Codes of all rows, int64 [B, K, N] or [B, K N], as Tokens with the items' lengths."""
        return Tokens(codes.view_as(self.tokens.codes), self.tokens.spec, self.tokens.lengths)

    def rows(self, rows: Tensor, codes: Tensor) -> SampleRequest:
        """The request of some rows: `codes` of all rows as above, of which it holds a copy. Make a new one
        after each draw elsewhere.

        Args:
            rows: int64 [b], in their order.
            codes: int64 [B, K, N] or [B, K N].
        """
        tokens = self.with_codes(codes).rows(rows)
        if len(rows) == self.rng.batch:
            return replace(self, tokens=tokens)
        return replace(self, condition=self.condition.rows(rows), rng=self.rng.rows(rows), tokens=tokens)

    def choose_at(self, logits: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> Tensor:
        """Ids of cells that are drawn once: by the watermark where there is one, else by `choose`. Arguments and result are those of
        `Mark.choose`; where nothing is drawn, level and position may be anything."""
        if self.mark is None:
            return self.choose(logits, rng)
        check_finite(logits.amax(-1), rng, "distribution")
        return self.mark.choose(logits, rng, level, position)

    def report(self, tokens: Tokens | Latents | Tensor, step: int, steps: int) -> None:
        """Hands the tokens or codes so far, the number of this step and that of all steps to `on_step`."""
        if self.on_step is not None:
            self.on_step(self.with_codes(tokens.clone()) if isinstance(tokens, Tensor) else tokens, step, steps)

    def output(self, tokens: Tokens | Latents | Tensor, calls: Tensor, **stats: Any) -> SampleOutput:
        """The result: tokens or codes of all rows, and the calls of each row, int64 [B]."""
        tokens = self.with_codes(tokens) if isinstance(tokens, Tensor) else tokens
        return SampleOutput(tokens.validate(), calls, dict(self.network_calls), stats=stats)


def initial_tokens(
    spec: TokenSpec, rng: RowRNG, known: Tokens | Latents | None = None, lengths: Tensor | None = None
) -> Any:  # fmt: skip
    """What a sampler starts from.

    Args:
        spec: the generator's tokens.
        rng: of B rows; the tokens are made on its device.
        known: B rows whose cells >= 0 are known, UNKNOWN ones masked; ABSENT ones stay absent (a dropped
            level).
        lengths: int64 [B], in positions; None: those of `known`, else the spec's.

    Returns:
        Tokens: a copy, with known codes, UNKNOWN where cells are masked, and ABSENT beyond `lengths` and
            where the spec has no cell. Of a spec without vocabulary: Latents, NaN where they are masked.

    Raises:
        ValueError: batch, spec, codes or lengths do not fit, or a known code lies beyond its row's length.
    """
    batch, device = rng.batch, rng.device
    if not spec.vocab_sizes:
        return _initial_latents(spec, rng, known, lengths)
    if lengths is None and known is not None:
        lengths = known.lengths
    if lengths is not None:
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device=device)
        if lengths.shape != (batch,) or bool(((lengths < 0) | (lengths > spec.positions)).any()):
            raise ValueError(f"lengths must be {batch} numbers in 0..{spec.positions} positions; got {lengths.tolist()[:8]}")
    tokens = Tokens.unknown(spec, batch, lengths, device)
    if known is None:
        return tokens
    if not known.spec.same_codes(spec):
        raise ValueError(f"the known tokens are {known.spec.describe()}; this generator models {spec.describe()}")
    if known.codes.shape != tokens.codes.shape:
        raise ValueError(
            f"known codes must be [B, K, N] = {list(tokens.codes.shape)} for this batch and spec; got {list(known.codes.shape)}"
        )
    codes = known.validate().codes.to(device)
    beyond = (codes >= 0) & (tokens.codes == ABSENT)
    if beyond.any():
        b, k, n = beyond.nonzero()[0].tolist()
        raise ValueError(f"known holds a code at row {b}, level {k}, position {n}, beyond that row's length {int(lengths[b])}")
    return Tokens(torch.where(tokens.codes == ABSENT, tokens.codes, codes), spec, lengths)


def _initial_latents(spec: TokenSpec, rng: RowRNG, known: Any, lengths: Tensor | None) -> Latents:
    if lengths is not None:
        raise ValueError("items of latents are of one size; leave lengths out")
    latents = Latents.unknown(spec, rng.batch, rng.device)
    if known is None:
        return latents
    if not isinstance(known, Latents) or not known.spec.same_codes(spec):
        kind = "codes" if isinstance(known, Tokens) else "latents"
        raise ValueError(f"what is known are {kind}, {known.spec.describe()}; this generator models latents, {spec.describe()}")
    if known.values.shape != latents.values.shape:
        shape, got = list(latents.values.shape), list(known.values.shape)
        raise ValueError(f"known latents must be [B, D, N] = {shape} for this batch and spec; got {got}")
    return Latents(known.values.to(latents.values), spec)
