"""The exact distribution of what a sampler makes: every random choice of a run is followed in every way that it can go.

    found = enumerated(sampler, model, case)        a kit.Distribution, without sampling error
    assert same(found, causal_distribution(model, case, sampler))

A row of the batch is a path: the options that it takes, one after the other. Where a path ends and the sampler wants another choice, the
row is split into all options of it, and the next run follows each. Random choices are

    an id                       `choose`: any id that is possible. A distribution whose possible ids are all alike is taken for that of a
                                cell that nobody asks for; tables have none
    rng.uniform() < p           yes or no, number by number
    rng.uniform() else          in which order the numbers of the free cells are (all orders are as likely); or `uniforms`
    score + scale rng.gumbel()  in which order the sums of the free cells are (Plackett and Luce)

What this does not see is whether random numbers are drawn twice, and how `draw` uses one: test_exact_*.py sample for that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from kit import Case, Distribution
from torch import Tensor

from gentok.rng import RowRNG
from gentok.types import UNKNOWN, Class, Condition, Tokens

LIMIT = 60_000
"""Paths at most: a case with more is too large for this."""
NOTHING = 1e-12
"""An option of less is rounding: it may be there in one batch and not in another. `gap` does not see 1e-9."""


class Run:
    """The paths of one run, int64 [n, L], and the choices behind their ends.

    Attributes:
        p: float64 [n], the probability of each path.
        ended: bool [n], which of them wanted another choice; what they take then is not looked at.
        after: what they may take next: (rows, their probabilities [rows, options]).
    """

    def __init__(self, paths: np.ndarray, free: Tensor, uniforms: Callable[[], list[tuple[float, np.ndarray]]] | None):
        self.paths, self.free, self.uniforms = paths, free.flatten().nonzero()[:, 0].tolist(), uniforms
        self.taken, self.p, self.ended = np.zeros(len(paths), dtype=np.int64), np.ones(len(paths)), np.zeros(len(paths), dtype=bool)
        self.after: list[tuple[np.ndarray, np.ndarray]] = []

    def pick(self, rng: Script, p: np.ndarray) -> np.ndarray:
        """The option that each row of `rng` takes, int64 [b], of options with these probabilities [b, options]."""
        p = np.where(p < NOTHING, 0.0, p)
        p /= p.sum(1, keepdims=True)
        rows, out = rng.row_numbers.numpy(), p.argmax(1)
        choice = ~self.ended[rows] & (p.max(1, initial=0.0) < 1)
        ends = choice & (self.taken[rows] == self.paths.shape[1])
        if ends.any():
            self.after.append((rows[ends], p[ends]))
            self.ended[rows[ends]] = True
        follow = choice & ~ends
        at = rows[follow]
        out[follow] = self.paths[at, self.taken[at]]
        self.taken[at] += 1
        self.p[at] *= p[follow, out[follow]]
        return out

    def longer(self) -> np.ndarray:
        """The paths of the next run, int64 [m, L + 1]."""
        out = [np.zeros((0, self.paths.shape[1] + 1), dtype=np.int64)]
        for rows, p in self.after:
            row, option = p.nonzero()
            out.append(np.concatenate((self.paths[rows[row]], option[:, None]), 1))
        return np.concatenate(out)

    def choose(self, logits: Tensor, rng: Script) -> Tensor:
        flat = logits.double().reshape(len(logits), -1, logits.shape[-1]).numpy()
        p = np.exp(flat - flat.max(2, keepdims=True))
        blank = ((p == 1) | (p == 0)).all(2)  # all possible ids are alike
        p /= p.sum(2, keepdims=True)
        p[blank] = np.eye(p.shape[2])[p[blank].argmax(1)]
        ids = np.stack([self.pick(rng, p[:, c]) for c in range(p.shape[1])], 1)
        return torch.from_numpy(ids).view(logits.shape[:-1])


class Script:
    """Stands for a RowRNG: its numbers are what the paths say."""

    device = torch.device("cpu")

    def __init__(self, run: Run, rows: Tensor):
        self.run, self.row_numbers = run, rows

    @property
    def batch(self) -> int:
        return len(self.row_numbers)

    def rows(self, index: Tensor) -> Script:
        return Script(self.run, self.row_numbers[index])

    def uniform(self, *shape: int) -> Uniform:
        return Uniform(self, shape)

    def gumbel(self, *shape: int) -> Gumbel:
        return Gumbel(self, shape)

    def fork(self, tag: str) -> RowRNG:
        """A stream whose numbers are no choices: a sampler's distribution must be right whatever they are."""
        return RowRNG(torch.zeros(self.batch, dtype=torch.int64)).fork(tag)


class Uniform:
    """Uniform numbers of which a sampler asks whether they are below something, or else their order."""

    def __init__(self, rng: Script, shape: tuple[int, ...]):
        self.rng, self.shape = rng, shape

    def __len__(self) -> int:
        return self.rng.batch

    def __lt__(self, p: Tensor | float) -> Tensor:
        chances = torch.as_tensor(p).double().nan_to_num(0.0).clamp(0, 1).expand(self.rng.batch, *self.shape)
        flat = chances.reshape(self.rng.batch, -1).numpy()
        below = [self.rng.run.pick(self.rng, np.stack((1 - p, p), 1)) for p in flat.T]
        return torch.from_numpy(np.stack(below, 1) == 1).view(chances.shape)

    @functools.cached_property
    def numbers(self) -> Tensor:
        """float64 [B, ...]: one set of numbers for every order of the free cells, or those of `uniforms`."""
        run, size = self.rng.run, int(np.prod(self.shape))
        if run.uniforms is not None:
            options = run.uniforms()
        else:
            options = []
            for order in itertools.permutations(run.free):
                values = np.full(size, 0.5)
                values[list(order)] = (np.arange(len(order)) + 0.5) / max(len(order), 1)
                options.append((1.0, values))
        p = np.array([weight for weight, _ in options])
        taken = self.rng.run.pick(self.rng, np.tile(p / p.sum(), (self.rng.batch, 1)))
        return torch.from_numpy(np.stack([values for _, values in options])[taken]).view(self.rng.batch, *self.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numbers, name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.numbers[index]


class Gumbel:
    """Gumbel numbers that are scaled and added to scores."""

    def __init__(self, rng: Script, shape: tuple[int, ...], scale: float = 1.0):
        self.rng, self.shape, self.scale = rng, shape, scale

    def __rmul__(self, scale: float) -> Gumbel:
        return Gumbel(self.rng, self.shape, self.scale * scale)

    def __radd__(self, score: Tensor) -> Tensor:
        if self.scale == 0:
            return score
        flat, free = score.expand(self.rng.batch, *self.shape).reshape(self.rng.batch, -1).numpy().copy(), self.rng.run.free
        log_weight, rows = flat[:, free] / self.scale, np.arange(self.rng.batch)
        for place in range(len(free), 0, -1):
            weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
            at = self.rng.run.pick(self.rng, weight / weight.sum(1, keepdims=True))
            flat[rows, np.array(free)[at]], log_weight[rows, at] = place, -np.inf
        return torch.from_numpy(flat).view(self.rng.batch, *self.shape)


def enumerated(
    sampler: Any, model: Any, case: Case, *, uniforms: Callable[[], list[tuple[float, np.ndarray]]] | None = None, **options: Any
) -> Distribution:
    """The distribution of what a sampler makes of a case.

    Args:
        sampler: any that draws ids and the numbers above.
        model: of its capability.
        case: one kind of row.
        uniforms: () -> (weight, numbers) of every way in which `rng.uniform` may come out, where orders are not what matters.
        options: of the sampler's call; tensors and Tokens of one row.
    """
    paths = np.zeros((1, 0), dtype=np.int64)
    found: dict[bytes, float] = {}
    outcomes: dict[bytes, Tensor] = {}
    while len(paths):
        assert len(paths) <= LIMIT, "this case has too many paths"
        n, run = len(paths), Run(paths, case.codes == UNKNOWN, uniforms)
        known = Tokens(case.codes.expand(n, -1, -1).clone(), model.spec)
        given = {name: value.rows([0] * n) if isinstance(value, Tokens) else value for name, value in options.items()}
        out = sampler(
            model, Condition({"class": Class(torch.full((n,), case.class_id))}), rng=Script(run, torch.arange(n)), known=known,
            lengths=torch.full((n,), case.length), choose=run.choose, **given,
        )  # fmt: skip
        done = (~run.ended).nonzero()[0]
        assert (run.taken[done] == paths.shape[1]).all(), "the run is not the same when it is repeated"
        for codes, p in zip(out.tokens.codes[done], run.p[done]):
            key = codes.numpy().tobytes()
            found[key], outcomes[key] = found.get(key, 0.0) + p, codes
        paths = run.longer()
    return Distribution(torch.stack(list(outcomes.values())), np.array(list(found.values())))


def gap(found: Distribution, expected: Distribution) -> float:
    """The largest difference of an outcome's probabilities, relative down to 1e-9: of 1e-6 and 2e-6 it is 0.5."""
    worst = 0.0
    for key in found.index.keys() | expected.index.keys():
        a, b = (float(d.p[d.index[key]]) if key in d.index else 0.0 for d in (found, expected))
        worst = max(worst, abs(a - b) / max(a, b, 1e-9))
    return worst


def same(found: Distribution, expected: Distribution) -> bool:
    """Equal but for rounding: guidance computes in float32 where the model's logits are, and some samplers give the time in float32."""
    return gap(found, expected) < 1e-5


def variation(found: Distribution, expected: Distribution) -> float:
    """Their total variation distance: how near a mutant is."""
    keys = found.index.keys() | expected.index.keys()
    return 0.5 * sum(abs(sum(sign * float(d.p[d.index[k]]) for sign, d in ((1, found), (-1, expected)) if k in d.index)) for k in keys)


def changed(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A table whose logits are change(logits), in all that it gives."""

    class Changed(type(model)):
        def logits(self, *args: Any, **options: Any) -> Tensor:
            return change(super().logits(*args, **options))

        def verify(self, *args: Any) -> Tensor:
            return change(super().verify(*args))

    model.__class__ = Changed
    return model


def some_impossible(logits: Tensor) -> Tensor:
    """Rare ids become impossible, others for every history; id 0 stays, so that guidance has something left."""
    return logits.masked_fill((logits < -0.5) & (torch.arange(logits.shape[-1]) > 0), -torch.inf)
