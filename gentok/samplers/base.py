"""What every sampler is: a frozen dataclass of hyper-parameters that turns a generator, a condition and noise into Tokens.

`requires` names the capability that the sampler needs; `exact` says whether it draws from the model's own (filtered, guided) law;
`any_known` whether it can keep any set of known cells. A new sampler is one file in this package and one yaml; `fitting` finds it.

Rows are independent: whatever a row draws, it draws from its own stream and only when it needs a draw, so that a row of a batch
equals that row alone.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from gentok.generators.base import Capability, capabilities
from gentok.interfaces import Component
from gentok.layouts import Layout
from gentok.samplers import filters
from gentok.types import ABSENT, Condition, RowRNG, Tokens, TokenSpec

__all__ = [
    "NetworkCalls", "CellSampler", "Choice", "OnStep", "SampleOutput", "Sampler", "check_known", "draw", "every_sampler", "fitting", "initial",
    "race", "sampler_name",
]  # fmt: skip

Choice = Callable[[Tensor, RowRNG], Tensor]
"""(filtered logits [B, ..., V], noise of these B rows) -> ids int64 [B, ...]."""
OnStep = Callable[[Tokens, int, int], None]
"""(tokens so far, step, steps)."""


# ------------------------------------------------------------------------------------------------------------------ draws


def draw(logits: Tensor, rng: RowRNG) -> Tensor:
    """One id per law: logits float [B, ..., V] -> int64 [B, ...], exact to float64, one uniform per id.

    The first id whose cumulative weight exceeds u times the total, in float64. An id with probability 0 is never drawn. The same
    law as `race`, and much cheaper, since it needs one random number instead of V.
    """
    logits = logits.double()
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    u = rng.uniform(*logits.shape[1:-1])[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, u, right=True)[..., 0]


def race(logits: Tensor, rng: RowRNG) -> Tensor:
    """One id per law: logits float [B, ..., V] -> int64 [B, ...]; the winner of a race of exponentials, argmin E_v / p_v, in float64."""
    return (logits.double() - rng.exponential(*logits.shape[1:]).log()).argmax(-1)


# ---------------------------------------------------------------------------------------------------------------- samplers


@dataclass
class SampleOutput:
    """tokens; calls int64 [B]: network calls that each row needed; network_calls: name -> (calls, positions computed over the batch)."""

    tokens: Tokens
    calls: Tensor
    network_calls: dict[str, tuple[int, int]]
    log_weight: Tensor | None = None
    trace: Any = None
    stats: dict[str, Any] = field(default_factory=dict)


class NetworkCalls(dict[str, tuple[int, int]]):
    """Network calls as they happen: name -> (calls, positions computed over the batch)."""

    def add(self, model: Any, positions: int, name: str = "generator") -> None:
        """One call on `positions` positions of the batch; a guided model computes each of them once per branch."""
        calls, before = self.get(name, (0, 0))
        self[name] = (calls + 1, before + positions * getattr(model, "branches", 1))


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """temperature >= 0 (0: the most probable id); top_k, top_p, min_p, typical: filters, off by default (see samplers/filters.py)."""

    requires: ClassVar[type[Capability]]
    exact: ClassVar[bool]
    any_known: ClassVar[bool] = False
    steps: ClassVar[int] = 1
    """Network passes over an item, for estimates of cost; a sampler that works in steps has a field of this name."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None

    def __post_init__(self) -> None:
        filters.check(**self._filters)

    @property
    def _filters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p", "typical")}

    @abstractmethod
    def __call__(
        self,
        model: Any,
        condition: Condition,
        *,
        rng: RowRNG,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: Callable[[Tokens, int, int], None] | None = None,
    ) -> SampleOutput:
        """Draws noise.batch items.

        known: Tokens whose cells >= 0 are kept, UNKNOWN ones drawn. lengths int64 [B] in positions, for items shorter than the spec's.
        choose: how an id is drawn from filtered logits (default `draw`). on_step(tokens so far, step, steps): for progress and pictures.
        Raises ValueError where the model, `known`, `lengths` or `draft` do not fit.
        """

    def filter(self, logits: Tensor) -> Tensor:
        """The law that ids are drawn from: logits [..., V] -> float64 [..., V]."""
        return filters.apply(logits, **self._filters)

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Raises ValueError, with the samplers that fit, unless `model` (a generator or its class) has the required capability."""
        kind = model if isinstance(model, type) else type(model)
        if not issubclass(kind, cls.requires):
            able = ", ".join(capabilities(kind)) or "without capability"
            names = ", ".join(sampler_name(s) for s in fitting(kind)) or "none"
            raise ValueError(
                f"the sampler {sampler_name(cls)} needs a {cls.requires.__name__} generator, {kind.__name__} is {able}; "
                f"samplers that fit it: {names}"
            )

    def no_draft(self, draft: Tokens | None) -> None:
        """Raises ValueError where a draft was given to a sampler that has no use for one."""
        if draft is not None:
            raise ValueError(f"the sampler {sampler_name(type(self))} does not start from a draft; leave draft out, or mark cells as known")


class CellSampler(Sampler):
    """A sampler that starts from known cells and holes, and from nothing else."""

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        condition: Condition,
        *,
        rng: RowRNG,
        known: Tokens | None = None,
        lengths: Tensor | None = None,
        draft: Tokens | None = None,
        choose: Choice | None = None,
        on_step: OnStep | None = None,
    ) -> SampleOutput:
        self.check_model(model)
        self.no_draft(draft)
        return self.run(model, condition, rng, initial(model.spec, rng, known, lengths), choose or draw, on_step)

    @abstractmethod
    def run(self, model: Any, condition: Condition, rng: RowRNG, tokens: Tokens, choose: Choice, on_step: OnStep | None) -> SampleOutput:
        """tokens: codes >= 0 where they are known, UNKNOWN where they are to be drawn; the rest as in Sampler.__call__."""


def sampler_name(cls: type[Sampler]) -> str:
    """The file's name, which is also the name in conf/sampler."""
    return cls.__module__.rpartition(".")[2]


def every_sampler() -> list[type[Sampler]]:
    """All samplers of this package, found by its files."""
    import gentok.samplers as package

    found = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Sampler)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ):
                found.append(value)
    return found


def fitting(model: Any) -> list[type[Sampler]]:
    """The samplers of this package whose capability `model` (a generator or its class) has, exact ones first."""
    cls = model if isinstance(model, type) else type(model)
    return sorted((s for s in every_sampler() if issubclass(cls, s.requires)), key=lambda s: not s.exact)


# ---------------------------------------------------------------------------------------------------------- what is known


def initial(spec: TokenSpec, rng: RowRNG, known: Tokens | None = None, lengths: Tensor | None = None) -> Tokens:
    """What a sampler starts from, on the noise's device: `known` cells, UNKNOWN holes, ABSENT beyond `lengths` and where the spec
    has no cell.

    ABSENT cells of `known` stay absent (a dropped level). lengths defaults to known.lengths. Raises ValueError where batch, spec,
    codes or lengths do not fit, or a known code lies beyond its row's length.
    """
    batch, device = rng.batch, rng.device
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
            f"known codes must be [B, K, N] = {list(tokens.codes.shape)} for this noise and spec; got {list(known.codes.shape)}"
        )
    codes = known.validate().codes.to(device)
    beyond = (codes >= 0) & (tokens.codes == ABSENT)
    if beyond.any():
        b, k, n = beyond.nonzero()[0].tolist()
        raise ValueError(f"known holds a code at row {b}, level {k}, position {n}, beyond that row's length {int(lengths[b])}")
    return Tokens(torch.where(tokens.codes == ABSENT, tokens.codes, codes), spec, lengths)


def check_known(tokens: Tokens, layout: Layout, forced: bool = False) -> bool:
    """Whether a known cell comes after a hole of its row in the layout: then a causal sampler ignores it where it draws that hole.

    Raises ValueError in that case unless `forced`. Cells of the hole's own step do no harm where the step's slots are independent.
    """
    first = layout.prefix(tokens.masked)
    step = layout.step.to(first.device)
    late = tokens.present & (step > first[:, None, None])
    if not late.any():
        return False
    if not forced:
        b, k, n = late.nonzero()[0].tolist()
        able = ", ".join(f"{sampler_name(s)} (a {s.requires.__name__} generator)" for s in every_sampler() if s.any_known)
        raise ValueError(
            f"known cells must come before every hole in the {layout.name} order, but row {b} has a hole at step {int(first[b])} and "
            f"knows level {k}, position {n} at step {int(step[k, n])}; samplers that keep any cells: {able}; "
            "or set forced=true, which ignores the later cells"
        )
    return True
