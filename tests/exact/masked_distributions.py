"""Enumerated distributions of the samplers of masked diffusion, and a model whose conditionals depend on the
time and do not agree.

All of them add up products of one conditional: p(cell | known cells and those that are revealed, given time),
read from the model's own uncached logits, filtered and guided by the kit's numpy code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from kit import Case, Distribution, TabularMasked, completions, reference_filter, reference_guided, reference_scale
from numpy.polynomial import chebyshev
from torch import Tensor

from gentok.flow.absorbing import mask_schedule
from gentok.generators.base import Masked
from gentok.types import NULL_CLASS, UNKNOWN, Class, Condition, Tokens

PLAIN = (1.0, "constant")


class TimedMasked(Masked):
    """A table whose logits grow with the given time: its conditionals are no conditionals of one joint
    distribution, and depend on time smoothly."""

    uses_time = True

    def __init__(self, *args: Any, **options: Any):
        self.table = TabularMasked(*args, **options)
        self.spec, self.condition_spec = self.table.spec, self.table.condition_spec

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        return self.table.logits(tokens, condition) * (0.4 + 1.2 * t.double())[:, None, None, None]


def _normalised(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


class Conditionals:
    """p(cell | ...) of every outcome of a case, filtered: `of(revealed, share)` -> float64 [M, masked cells], 0 where a masked cell is
    revealed. `raw` and `filtered` give the whole distributions, float64 [M, masked cells, V].

    revealed: a bit mask over the masked cells, in the order of codes.nonzero(). share: the given masked share
    of the masked cells; None: as it is.
    """

    def __init__(self, model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = PLAIN):
        self.model, self.case, self.sampler, self.guidance = model, case, sampler, guidance
        self.outcomes = completions(case.codes, model.spec)
        self.masked = (case.codes == UNKNOWN).nonzero().tolist()
        self.cells = len(self.masked) + int((case.codes >= 0).sum())
        self.ids = np.array([[int(row[k, n]) for k, n in self.masked] for row in self.outcomes]).reshape(len(self.outcomes), -1)
        self._known: dict[Any, np.ndarray] = {}

    def _branch(self, codes: Tensor, class_id: int, t: float) -> np.ndarray:
        m = len(codes)
        condition = Condition({"class": Class(torch.full((m,), class_id))})
        tokens = Tokens(codes, self.model.spec, torch.full((m,), self.case.length))
        with torch.no_grad():
            return self.model.logits(tokens, condition, torch.full((m,), t, dtype=torch.float64)).double().numpy()

    def _logits(self, revealed: int, share: float | None) -> np.ndarray:
        """Guided, [M, masked cells, V]; -inf at revealed cells."""
        left = [j for j in range(len(self.masked)) if not revealed >> j & 1]
        share = len(left) / len(self.masked) if share is None else share
        key = (revealed, share)
        if key not in self._known:
            codes = self.outcomes.clone()
            for j in left:
                codes[:, self.masked[j][0], self.masked[j][1]] = UNKNOWN
            t = share * len(self.masked) / self.cells
            scale, schedule = self.guidance
            strength = reference_scale(scale, schedule, 1 - len(left) / self.cells)
            conditional = self._branch(codes, self.case.class_id, t)
            null = self._branch(codes, NULL_CLASS, t) if scale != 1 else conditional
            out = np.full((len(codes), len(self.masked), self.model.spec.vocab), -np.inf)
            for j in left:
                k, n = self.masked[j]
                size = self.model.spec.vocab_sizes[k]
                out[:, j, :size] = reference_guided(conditional[:, k, n, :size], null[:, k, n, :size], strength)
            self._known[key] = out
        return self._known[key]

    def _each(self, revealed: int, share: float | None, change: Any) -> np.ndarray:
        logits = self._logits(revealed, share)
        out = np.zeros(logits.shape)
        for j in range(len(self.masked)):
            size = self.model.spec.vocab_sizes[self.masked[j][0]]
            each, which = np.unique(logits[:, j, :size], axis=0, return_inverse=True)
            out[:, j, :size] = np.stack([change(one) if np.isfinite(one).any() else np.zeros(size) for one in each])[which.ravel()]
        return out

    def _kept(self, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def raw(self, revealed: int, share: float | None = None) -> np.ndarray:
        return self._kept(("raw", revealed, share), lambda: self._each(revealed, share, _normalised))

    def filtered(self, revealed: int, share: float | None = None) -> np.ndarray:
        return self._kept(
            (self.sampler, revealed, share), lambda: self._each(revealed, share, lambda one: reference_filter(one, self.sampler))
        )

    def of(self, revealed: int, share: float | None = None) -> np.ndarray:
        def make() -> np.ndarray:
            return np.take_along_axis(self.filtered(revealed, share), self.ids[..., None], 2)[..., 0]

        return self._kept(("of", self.sampler, revealed, share), make)


def ancestral_distribution(model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = PLAIN) -> Distribution:
    """The distribution of T ancestral steps: each masked cell falls into step i with probability m_i -
    m_(i+1), on its own; a step's cells are drawn independently, given those of the steps before."""
    c = Conditionals(model, case, sampler, guidance)
    grid = mask_schedule(sampler.schedule).grid(sampler.steps)
    p = np.zeros(len(c.outcomes))
    for steps in itertools.product(range(sampler.steps), repeat=len(c.masked)):
        term, revealed = np.ones(len(p)), 0
        for i in sorted(set(steps)):
            together = [j for j, step in enumerate(steps) if step == i]
            distribution = c.of(revealed, grid[i])
            for j in together:
                term = term * distribution[:, j] * (grid[i] - grid[i + 1])
                revealed |= 1 << j
        p += term
    return Distribution(c.outcomes, p)


def hitting_distribution(model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = PLAIN, nodes: int = 14) -> Distribution:
    """The distribution of the continuous-time reverse process. With n masked cells S left at share m, F_S(m),
    the probability of the outcome's remaining ids, is m^-n int_0^m v^(n - 1) sum over i in S of p(x_i | ...,
    time v) F_(S - i)(v) dv; F of no masked cell is 1, and the distribution is F_all(1).

    Everything is a polynomial in m, by its values at `nodes` Chebyshev nodes: enough where the model depends
    on the time smoothly.
    """
    c = Conditionals(model, case, sampler, guidance)
    count, m = len(c.masked), len(c.outcomes)
    at = 0.5 + 0.5 * np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    x, w = np.polynomial.legendre.leggauss(2 * nodes)
    x, w = 0.5 + x / 2, w / 2

    def fitted(values: np.ndarray) -> np.ndarray:
        return chebyshev.chebfit(2 * at - 1, values, nodes - 1)

    everything = (1 << count) - 1
    F = {0: np.ones((nodes, m))}
    for size in range(1, count + 1):
        for left in [s for s in range(1 << count) if bin(s).count("1") == size]:
            members = [j for j in range(count) if left >> j & 1]
            distributions = [c.of(everything & ~left, float(v)) for v in at]
            inside = sum(np.stack([distribution[:, j] for distribution in distributions]) * F[left & ~(1 << j)] for j in members)
            polynomial = fitted(inside)
            F[left] = np.stack([((w * x ** (size - 1))[None] * chebyshev.chebval(2 * v * x - 1, polynomial)).sum(1) for v in at])
    return Distribution(c.outcomes, chebyshev.chebval(1.0, fitted(F[everything])))


def ordered_distribution(
    model: Masked, case: Case, sampler: Any, order: Sequence[int], guidance: tuple[float, str] = PLAIN
) -> Distribution:
    """The distribution of drawing the masked cells one by one in a fixed order (indices into
    codes.nonzero()), given the masked share."""
    c = Conditionals(model, case, sampler, guidance)
    p, revealed = np.ones(len(c.outcomes)), 0
    for i, j in enumerate(order):
        p = p * c.of(revealed, (len(order) - i) / len(order))[:, j]
        revealed |= 1 << j
    return Distribution(c.outcomes, p)


def chain_distribution(model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = PLAIN) -> Distribution:
    """The distribution of a remasking plan for one level: the Markov chain over all states (each masked cell
    UNKNOWN or an id), a step's cells moving on their own given the state before it."""
    masked_cells = (case.codes == UNKNOWN).nonzero().tolist()
    vocab, cells = model.spec.vocab_sizes[0], max(len(masked_cells) + int((case.codes >= 0).sum()), 1)
    states = list(itertools.product(range(vocab + 1), repeat=len(masked_cells)))  # `vocab` stands for a masked cell
    codes = case.codes.expand(len(states), *case.codes.shape).clone()
    for j, (k, n) in enumerate(masked_cells):
        codes[:, k, n] = torch.tensor([UNKNOWN if state[j] == vocab else state[j] for state in states])
    tokens, scale = Tokens(codes, model.spec, torch.full((len(states),), case.length)), guidance[0]

    def branch(class_id: int, t: float) -> np.ndarray:
        condition = Condition({"class": Class(torch.full((len(states),), class_id))})
        with torch.no_grad():
            return model.logits(tokens, condition, torch.full((len(states),), t, dtype=torch.float64)).double().numpy()

    p = np.zeros(len(states))
    p[states.index((vocab,) * len(masked_cells))] = 1.0
    for step in sampler.plan():
        time = (1 - step.before) * len(masked_cells) / cells
        conditional = branch(case.class_id, time)
        null = branch(NULL_CLASS, time) if scale != 1 else conditional
        after = np.zeros((vocab + 1,) * len(masked_cells))
        for i, state in enumerate(states):
            if not p[i]:
                continue
            revealed_share = (cells - sum(v == vocab for v in state)) / cells
            strength, joint = reference_scale(scale, guidance[1], revealed_share), np.array(p[i])
            for j, (k, n) in enumerate(masked_cells):
                if state[j] == vocab:
                    mixed = reference_guided(conditional[i, k, n, :vocab], null[i, k, n, :vocab], strength)
                    move = np.append(step.reveal * reference_filter(mixed, sampler), 1 - step.reveal)
                else:
                    move = (1 - step.sigma) * np.eye(vocab + 1)[state[j]] + step.sigma * np.eye(vocab + 1)[vocab]
                joint = np.multiply.outer(joint, move)
            after += joint
        p = after.flatten()
    full = [i for i, state in enumerate(states) if vocab not in state]
    assert abs(p[full].sum() - 1) < 1e-9, "the last step leaves masked cells"
    return Distribution(codes[full], p[full])
