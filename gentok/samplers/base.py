"""What every sampler is: a frozen dataclass of hyper-parameters that turns a generator, a condition and
random numbers into Tokens.

`requires` names the capability that the sampler needs; `exact` says whether it draws from the model's own
(filtered, guided) distribution; `any_known` whether it can keep any set of known cells. A new sampler
implements `run`: it is one file in this package and one yaml, and `fitting` finds it.

Rows are independent: whatever a row draws, it draws from its own stream and only when it needs a draw, so
that a row of a batch equals that row alone.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from gentok.errors import check_choice
from gentok.generators.base import Capability, capabilities
from gentok.interfaces import Component
from gentok.layouts import Layout
from gentok.samplers import filters
from gentok.samplers.draws import Choice, Mark, checked, draw
from gentok.samplers.request import Arrivals, OnStep, SampleOutput, SampleRequest, initial_tokens
from gentok.settings import Fraction, NonNegativeFloat, PositiveFraction, PositiveInt
from gentok.types import Condition, RowRNG, Tokens

__all__ = ["Sampler", "check_known", "check_steps", "described", "every_sampler", "fitting", "sampler_name", "setting"]


def setting(default: Any, *, choices: Iterable[Any] = (), parse: Callable[[Any], Any] | None = None) -> Any:
    """A setting of a sampler with a check that no annotation can say, made when the sampler is built, which then raises ValueError.

    Args:
        default: its value in the class and in conf/sampler.
        choices: the values that there are.
        parse: what refuses wrong values.
    """
    choices = tuple(choices)

    def check(name: str, value: Any) -> None:
        if choices:
            check_choice(name, value, choices)
        if parse is not None:
            parse(value)

    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class Sampler(Component, ABC):
    """A sampling algorithm and its settings.

    Args:
        temperature: >= 0; the distribution to the power 1 / temperature. 0: the most probable id.
        top_k: keep the k most probable ids; None: all.
        top_p: keep the smallest set of most probable ids with this mass, in (0, 1]; None: all.
        min_p: keep ids with at least this share of the largest probability, in [0, 1]; None: all.
        typical: keep the locally typical set of this mass, in (0, 1]; None: all (samplers/filters.py).

    Attributes:
        requires: the capability of generators that it needs.
        exact: whether it draws from the model's own (filtered, guided) distribution.
        any_known: whether it can keep any set of known cells.
        takes_draft: whether it can start from a draft.
        joins: whether rows can wait until others are done (`at_once`).
        revises: whether a cell that was reported to `on_step` may change afterwards.
        marks: whether it can watermark: it draws the id of every cell once, by `SampleRequest.choose_at`.
    """

    requires: ClassVar[type[Capability]]
    exact: ClassVar[bool]
    any_known: ClassVar[bool] = False
    takes_draft: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    revises: ClassVar[bool] = False
    marks: ClassVar[bool] = False
    steps: ClassVar[int] = 1
    """A sampler that works in steps has a field of this name."""

    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: PositiveFraction | None = None
    min_p: Fraction | None = None
    typical: PositiveFraction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in fields(self):
            if check := f.metadata.get("check"):
                check(f.name, getattr(self, f.name))

    @property
    def passes(self) -> int:
        """Network passes over an item, for estimates of cost."""
        return self.steps

    @property
    def _filters(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(Sampler)}

    def refuse_filters(self) -> None:
        """Raises ValueError where a filter of ids is set, of samplers that draw vectors."""
        given = [name for name, value in self._filters.items() if name != "temperature" and value is not None]
        if given:
            raise ValueError(f"the sampler {sampler_name(type(self))} draws vectors, which {given[0]} cannot filter: leave it out")

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
        mark: Mark | None = None,
        on_step: OnStep | None = None,
        at_once: int | None = None,
        arrivals: Arrivals | None = None,
    ) -> SampleOutput:
        """Draws B items.

        Args:
            model: a generator with the required capability.
            condition: of B rows.
            rng: of B rows.
            known: Tokens whose cells >= 0 are kept, and UNKNOWN ones drawn; None: nothing is known.
            lengths: int64 [B], in positions, for items shorter than the spec's; None: those of `known` or
                `draft`, else the spec's.
            draft: Tokens to start from, for samplers that take one. Known cells win over it; its UNKNOWN
                cells are drawn first.
            choose: how ids are drawn from filtered logits; None: `draw`.
            mark: a watermark with its key (gentok/watermarks), in the place of `choose`, of samplers that can (`marks`).
            on_step: called as on_step(tokens so far, step, steps), for progress, and to show or play what is
                there. Cells that are not UNKNOWN are final, unless the sampler `revises`; `tokens.finished`
                counts the leading positions that are whole.
            at_once: how many rows are computed together at most, of samplers whose rows can wait (`joins`) and
                of models that can move rows; None: all.
            arrivals: rows that join between steps, of the same samplers and models, with neither `known` nor `mark`; None: none. `at_once`
                is then given.

        Returns:
            SampleOutput: the items, and what they cost.

        Raises:
            ValueError: the model, `known`, `lengths` or `draft` do not fit, or a distribution of the model is
                not finite.
        """
        self.check_model(model)
        if at_once is not None and not self.joins:
            raise ValueError(f"rows of the sampler {sampler_name(type(self))} cannot wait for others; leave at_once out")
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once={at_once}: at least one row must be computed at once")
        stays = known is not None or (mark is not None and not mark.joins) or not getattr(model, "moves_rows", False)
        if arrivals is not None and (at_once is None or stays):
            raise ValueError("rows can join later where at_once is given, nothing is known, no watermark is set, and the model moves rows")
        if draft is not None and not self.takes_draft:
            raise ValueError(f"the sampler {sampler_name(type(self))} does not start from a draft; leave draft out, or mark cells as known")
        if lengths is None and known is None and draft is not None:
            lengths = draft.lengths
        tokens = initial_tokens(model.spec, rng, known, lengths)
        if draft is not None:
            draft = initial_tokens(model.spec, rng, draft, tokens.lengths)
        model = model.arranged(tokens)
        if mark is not None:
            self.check_marks(choose)
            mark = mark.start(rng, tokens.codes.shape[-1])
        choose = checked(choose or draw)
        return self.run(SampleRequest(model, condition, rng, tokens, draft, choose, mark, on_step, at_once=at_once, arrivals=arrivals))

    def check_marks(self, choose: Choice | None = None) -> None:
        """Raises ValueError where ids that this sampler draws cannot carry a watermark."""
        if not self.marks:
            able = ", ".join(sampler_name(s) for s in every_sampler() if s.marks)
            raise ValueError(
                f"the sampler {sampler_name(type(self))}, as it is set, draws the ids of a cell more than once and can carry no watermark; "
                f"these can: {able}, and jacobi with verify=match tail=gumbel"
            )
        if choose is not None:
            raise ValueError("`choose` and `mark` both say how ids are drawn: give one of them")

    @abstractmethod
    def run(self, request: SampleRequest) -> SampleOutput:
        """The algorithm: fills the UNKNOWN cells of `request.tokens`."""

    def with_models(self, load: Callable[[str], Any]) -> Sampler:
        """This sampler with the generators that it names by path. load: path -> generator."""
        return self

    def filter(self, logits: Tensor) -> Tensor:
        """The distribution that ids are drawn from: logits [..., V] -> float64 [..., V]."""
        return filters.apply(logits, **self._filters)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether a generator, or its class, has what the sampler needs; of a class, as far as that can be said."""
        return issubclass(model if isinstance(model, type) else type(model), cls.requires)

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Checks that a model fits before anything is computed.

        Args:
            model: a generator or its class.

        Raises:
            ValueError: it lacks the required capability; the message lists the samplers that fit.
        """
        kind = model if isinstance(model, type) else type(model)
        if not issubclass(kind, cls.requires):
            able = ", ".join(capabilities(kind)) or "without capability"
            names = ", ".join(sampler_name(s) for s in fitting(kind)) or "none"
            raise ValueError(
                f"the sampler {sampler_name(cls)} needs a {cls.requires.__name__} generator, {kind.__name__} is {able}; "
                f"samplers that fit it: {names}"
            )


def sampler_name(cls: type[Sampler]) -> str:
    """The name of the sampler's file, which is also its name in conf/sampler."""
    return cls.__module__.rpartition(".")[2]


def described(sampler: Sampler) -> dict[str, Any]:
    """What reports say of a sampler: its name, whether it is exact, and its settings, those of a sampler inside likewise."""
    values = {f.name: getattr(sampler, f.name) for f in fields(sampler)}
    settings = {name: described(value) if isinstance(value, Sampler) else value for name, value in values.items()}
    return {"name": sampler_name(type(sampler)), "exact": sampler.exact, **settings}


def every_sampler() -> list[type[Sampler]]:
    """All samplers of this package, found by its files."""
    import gentok.samplers as package

    found = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
        found += [cls for cls in own if issubclass(cls, Sampler) and not inspect.isabstract(cls)]
    return found


def fitting(model: Any) -> list[type[Sampler]]:
    """The samplers of this package whose capability `model` (a generator or its class) has, exact ones
    first."""
    return sorted((s for s in every_sampler() if s.fits(model)), key=lambda s: not s.exact)


def check_known(tokens: Tokens, layout: Layout, forced: bool = False) -> bool:
    """Whether a known cell comes after a masked one of its row in the layout.

    A causal sampler then ignores it where it draws that masked cell. Known cells of the masked cell's own
    step do no harm where the slots of a step are independent.

    Args:
        tokens: what the sampler starts from.
        layout: the generator's order.
        forced: allow it.

    Raises:
        ValueError: there is such a cell, and it is not `forced`.
    """
    return check_steps(tokens, layout.step, layout.name, forced)


def check_steps(tokens: Tokens, step: Tensor, order: str, forced: bool = False) -> bool:
    """As `check_known`, of cells in any order: step int64 [K, N], and what the order is called."""
    step = step.to(tokens.codes.device)
    first = torch.where(tokens.masked, step, torch.iinfo(torch.int64).max).flatten(1).amin(1)
    late = tokens.present & (step > first[:, None, None])
    if not late.any():
        return False
    if not forced:
        b, k, n = late.nonzero()[0].tolist()
        able = ", ".join(f"{sampler_name(s)} (a {s.requires.__name__} generator)" for s in every_sampler() if s.any_known)
        raise ValueError(
            f"known cells must come before every masked cell in the {order} order, but row {b} has a masked cell at step "
            f"{int(first[b])} and knows level {k}, position {n} at step {int(step[k, n])}; samplers that keep any cells: {able}; "
            "or set forced=true, which ignores the later cells"
        )
    return True
