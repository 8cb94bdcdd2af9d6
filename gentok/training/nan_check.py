"""The health of a run: where the first number that is none came from, and codebooks that collapse.

A loss or gradient that is not finite is seen before the weights take it. Only then is the batch run again, with hooks on every module, to
name the first one whose output is not finite although its inputs are.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gentok.metrics.codebook import Health
from gentok.training.sharding import own_part

__all__ = ["finite", "find_first", "bad_gradient", "Collapse"]

_log = logging.getLogger("gentok.training")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def finite(value: Any) -> bool:
    """Whether every floating-point tensor inside (containers and dataclasses) is finite. -inf is a number here: that of an excluded id."""
    return all(not bool((t.isnan() | (t == torch.inf)).any()) for t in _tensors(value) if t.is_floating_point())


def find_first(root: nn.Module, again: Callable[[], Any]) -> str | None:
    """Runs `again` under hooks -> a phrase naming the first module of `root`, innermost first, whose output is not finite; None where
    all are. Without gradient."""
    names = {module: name for name, module in root.named_modules()}
    found: list[str] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if found or finite(output):
            return
        kind = f"{names[module] or 'the whole'} ({type(module).__name__})"
        broken = [name for name, p in module.named_parameters() if not p.isfinite().all()]
        if broken:
            found.append(f"{kind}, whose {broken[0]} is not finite itself")
        elif not finite((args, kwargs)):
            found.append(f"the input of {kind}")
        else:
            found.append(f"the output of {kind}")

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in names]
    try:
        with torch.no_grad():
            again()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def bad_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """A phrase naming the last parameter, in the order of the modules and so the nearest to the loss, whose gradient is not finite."""
    bad = [name for name, p in named if p.grad is not None and not own_part(p.grad).isfinite().all()]
    return f"the gradient of {bad[-1]}" if bad else None


ADVICE = {"revive_below": 0.05, "kmeans_start": 10}
"""Settings against collapse that some codebooks have, and where to begin."""


class Collapse:
    """Warns, once per level, where a level of the codebook has used too few of its rows for long.

    Args:
        below: the share of rows that counts as collapsed, of those that even use of all rows would have hit in as many codes.
        steps: how long.
        settings: the codebook's, of which the warning advises those that it has.
    """

    def __init__(self, below: float = 0.05, steps: int = 500, settings: Iterable[str] = ()):
        self.below, self.steps = below, steps
        known = [f"codebook.{name}={value}" for name, value in ADVICE.items() if name in settings]
        self.advice = ", ".join([*known, "a lower optimizer.lr or fewer rows"])
        self.since: dict[int, int] = {}
        self._said: set[int] = set()

    def update(self, health: Health, step: int) -> list[int]:
        """The levels that are reported now. health: of the codes since the last call; step: optimizer steps so far."""
        reported = []
        for level, (usage, dead, codes) in enumerate(zip(health.usage, health.dead, health.codes, strict=True)):
            rows = round(dead / (1 - usage)) if usage < 1 else 1
            even = 1 - (1 - 1 / max(2, rows)) ** codes
            if codes == 0 or usage >= self.below * even or rows <= 1 / self.below:
                self.since.pop(level, None)
                self._said.discard(level)
                continue
            if step - self.since.setdefault(level, step) >= self.steps and level not in self._said:
                self._said.add(level)
                reported.append(level)
                _log.warning(
                    "the codebook collapses: level %d has used %.1f %% of its %d rows since step %d; try %s",
                    level, 100 * usage, rows, self.since[level], self.advice,
                )  # fmt: skip
        return reported

    def state_dict(self) -> dict[str, Any]:
        return {"since": dict(self.since), "said": sorted(self._said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.since, self._said = {int(k): v for k, v in state["since"].items()}, set(state["said"])
