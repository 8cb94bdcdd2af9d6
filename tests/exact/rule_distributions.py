"""Enumerated distributions of samplers that reveal several cells in a call, and of the corrector's rounds: for every outcome, which cells
were revealed in which call, and with what probability their ids were drawn. Written in numpy, beside the library's code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kit import Case, Distribution, reference_filter
from masked_distributions import PLAIN, Conditionals

from gentok.generators.base import Masked

GAMMAS = {"cosine": lambda r: math.cos(math.pi * r / 2), "linear": lambda r: 1 - r, "arccos": lambda r: math.acos(r) / (math.pi / 2)}


def left_after(n: int, steps: int, schedule: str) -> list[int]:
    """How many of n cells are masked after each step."""
    out, masked = [], n
    for i in range(1, steps + 1):
        target = math.floor(n * GAMMAS[schedule](i / steps) + 1e-9)
        masked = min(max(target, 1 if i < steps else 0), max(masked - 1, 0))
        out.append(masked)
    return out


# ------------------------------------------------------------------------------------------------- rules that look at distributions


def by_entropy(sampler: Any) -> Callable[[np.ndarray, list[int], list[Any]], list[int]]:
    """The largest prefix of the most certain cells whose entropies, but for the largest of them, sum to gamma at most."""

    def rule(p: np.ndarray, left: list[int], cells: list[Any]) -> list[int]:
        h = {j: -sum(x * math.log(x) for x in p[j] if x > 0) for j in left}
        top = {j: sorted(p[j])[::-1] for j in left}
        score = {"entropy": h, "confidence": {j: -top[j][0] for j in left}, "margin": {j: top[j][1] - top[j][0] for j in left}}[
            sampler.order
        ]
        order = sorted(left, key=lambda j: score[j])
        count = 1
        while count < len(order):
            more = [h[j] for j in order[: count + 1]]
            if sum(more) - max(more) > sampler.gamma:
                break
            count += 1
        return order[: min(count, sampler.limit or count)]

    return rule


def by_confidence(sampler: Any) -> Callable[[np.ndarray, list[int], list[Any]], list[int]]:
    """Fast-dLLM's rules, in the first block that has masked cells."""

    def rule(p: np.ndarray, left: list[int], cells: list[Any]) -> list[int]:
        if sampler.block is not None:
            first = min(cells[j][1] // sampler.block for j in left)
            left = [j for j in left if cells[j][1] // sampler.block == first]
        order = sorted(left, key=lambda j: -p[j].max())
        if sampler.rule == "threshold":
            count = sum(p[j].max() >= sampler.threshold for j in order)
        else:
            count = max([n for n in range(1, len(order) + 1) if (n + 1) * (1 - p[order[n - 1]].max()) < sampler.factor], default=0)
        return order[: max(count, 1)]

    return rule


def rule_distribution(
    model: Masked, case: Case, sampler: Any, rule: Callable[..., list[int]], guidance: tuple[float, str] = PLAIN
) -> Distribution:
    """Call by call, the cells that `rule` picks by the distributions before filters, given what is revealed."""
    c = Conditionals(model, case, sampler, guidance)
    p = np.ones(len(c.outcomes))
    for row in range(len(p)):
        revealed = 0
        while left := [j for j in range(len(c.masked)) if not revealed >> j & 1]:
            for j in (together := rule(c.raw(revealed)[row], left, c.masked)):
                p[row] *= c.of(revealed)[row, j]
            revealed |= sum(1 << j for j in together)
    return Distribution(c.outcomes, p)


# ------------------------------------------------------------------------------------------------------------ orders without regard to ids


def grouped(c: Conditionals, groups: Sequence[Sequence[int]], times: Sequence[Sequence[float]] | None = None, order: int = 1) -> np.ndarray:
    """float64 [M]: cells of a group are drawn together, one group after the other.

    times: of every cell, for a network that is given them (a group's is that of its first cell). order 2: a cell's distribution is moved
    on by the change since the last call, linearly in time, at most once the change, and cut at 0.
    """
    p, revealed, before = np.ones(len(c.outcomes)), 0, None
    for g, group in enumerate(groups):
        share = None if times is None else times[g][0]
        full = c.filtered(revealed, share)
        raw = c.raw(revealed, share)
        for i, j in enumerate(group):
            now = full[:, j]
            if order == 2 and before is not None:
                last, at = before
                weight = min((share - times[g][i]) / (at - share), 1.0)
                moved = np.maximum(raw[:, j] + weight * (raw[:, j] - last[:, j]), 0)
                with np.errstate(divide="ignore"):
                    now = np.stack([reference_filter(row, c.sampler) for row in np.log(moved)])
            p = p * now[np.arange(len(p)), c.ids[:, j]]
        before = (raw, share)
        revealed |= sum(1 << j for j in group)
    return p


def chunks(order: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    ends = list(itertools.accumulate(sizes))
    return [list(order[end - size : end]) for size, end in zip(sizes, ends) if size]


def hitting_in_groups(model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = PLAIN) -> Distribution:
    """First-hitting with several cells per call, where the cells' times are 0.5 / n, 1.5 / n, ... in an order that is as likely as any."""
    c = Conditionals(model, case, sampler, guidance)
    n, width = len(c.masked), sampler.cells_per_call
    times = chunks([(n - i - 0.5) / n for i in range(n)], [width] * (n // width) + [n % width])
    orders = list(itertools.permutations(range(n)))
    p = sum(grouped(c, chunks(order, [len(t) for t in times]), times, sampler.order) for order in orders)
    return Distribution(c.outcomes, p / len(orders))


def halton_distribution(
    model: Masked, case: Case, sampler: Any, orders: Sequence[Sequence[int]], guidance: tuple[float, str] = PLAIN
) -> Distribution:
    """The mean over `orders` of positions, each as likely; levels of a position coarse first."""
    c = Conditionals(model, case, sampler, guidance)
    n, total = len(c.masked), np.zeros(len(c.outcomes))
    counts = list(range(n - 1, -1, -1)) if n <= sampler.steps else left_after(n, sampler.steps, sampler.schedule)
    sizes = [a - b for a, b in zip([n, *counts], counts)]
    for positions in orders:
        cells = sorted(range(n), key=lambda j: (list(positions).index(c.masked[j][1]), c.masked[j][0]))
        total += grouped(c, chunks(cells, sizes))
    return Distribution(c.outcomes, total / len(orders))


def reversed_digits(i: int, base: int) -> float:
    out, unit = 0.0, 1.0
    while i:
        unit /= base
        out, i = out + i % base * unit, i // base
    return out


def halton_orders(h: int, w: int, roll: bool) -> list[list[int]]:
    """Positions of an h x w grid (w = 1: a line) in Halton order, moved around the edges by every shift."""
    points: list[tuple[int, int]] = []
    for i in range(1, 1000):
        point = (int(reversed_digits(i, 2) * h), int(reversed_digits(i, 3) * w))
        points += [point] if point not in points else []
    shifts = itertools.product(range(h), range(w)) if roll else [(0, 0)]
    return [[(y + dy) % h * w + (x + dx) % w for y, x in points] for dy, dx in shifts]


# --------------------------------------------------------------------------------------------------------------- confidence of drawn ids


def kept_set(scores: Sequence[np.ndarray], kept: Sequence[int], scale: float) -> np.ndarray:
    """The probability [M] that exactly the `kept` of the scores [M] are the highest once Gumbel numbers times `scale` are added."""
    others = [j for j in range(len(scores)) if j not in kept]
    if scale == 0:
        if not others:
            return np.ones(len(scores[0]))
        return (np.min([scores[j] for j in kept], 0) > np.max([scores[j] for j in others], 0)).astype(float)
    total = np.zeros(len(scores[0]))
    for order in itertools.permutations(kept):
        term, rest = np.ones(len(total)), list(range(len(scores)))
        for j in order:
            top = np.max([scores[i] for i in rest], 0)
            term = term * np.exp((scores[j] - top) / scale) / sum(np.exp((scores[i] - top) / scale) for i in rest)
            rest.remove(j)
        total += term
    return total


def maskgit_distribution(
    model: Masked,
    case: Case,
    sampler: Any,
    guidance: tuple[float, str] = PLAIN,
    parts: Sequence[tuple[Sequence[int], int, Any]] | None = None,
) -> Distribution:
    """MaskGIT at any choice temperature: ids of all masked cells are drawn, the most confident of them stay, the others are forgotten.

    parts: (cells, steps, sampler whose filters count) that are filled one after the other; None: all cells at once.
    """
    c = Conditionals(model, case, sampler, guidance)
    f = {0: np.ones(len(c.outcomes))}
    for cells, steps, own in parts or [(range(len(c.masked)), sampler.steps, sampler)]:
        c.sampler = own
        for i, target in enumerate(left_after(len(cells), steps, sampler.schedule)):
            f = _kept_by_confidence(c, f, cells, target, sampler.choice_temperature * (1 - (i + 1) / steps))
    return Distribution(c.outcomes, f[(1 << len(c.masked)) - 1])


def _kept_by_confidence(
    c: Conditionals, f: dict[int, np.ndarray], cells: Sequence[int], target: int, scale: float
) -> dict[int, np.ndarray]:
    """One step: {revealed cells: the probability [M] that they were revealed with an outcome's ids}."""
    after: dict[int, np.ndarray] = {}
    rows = np.arange(len(c.outcomes))
    for revealed, so_far in f.items():
        left = [j for j in cells if not revealed >> j & 1]
        if not left:
            after[revealed] = after.get(revealed, 0) + so_far
            continue
        p, raw = c.filtered(revealed), c.raw(revealed)
        for kept in itertools.combinations(left, len(left) - target):
            forgotten = [j for j in left if j not in kept]
            chance = np.zeros(len(rows))
            for ids in itertools.product(*(range(c.model.spec.vocab_sizes[c.masked[j][0]]) for j in forgotten)):
                at = {j: c.ids[:, j] for j in kept} | {j: np.full(len(rows), v) for j, v in zip(forgotten, ids)}
                drawn = np.prod([p[rows, j, at[j]] for j in left], 0)
                scores = [np.log(np.where(drawn > 0, raw[rows, j, at[j]], 1.0)) for j in left]
                chance += drawn * kept_set(scores, [left.index(j) for j in kept], scale)
            key = revealed | sum(1 << j for j in kept)
            after[key] = after.get(key, 0) + so_far * chance
    return after


# -------------------------------------------------------------------------------------------------------------------------------- rounds


def corrected_distribution(
    model: Masked, case: Case, sampler: Any, draft: Sequence[int], guidance: tuple[float, str] = PLAIN
) -> Distribution:
    """Rounds of the corrector from one draft (ids of the masked cells): a uniformly random set of cells is masked and filled again, at once
    or one by one in random order. Nothing is asked of the conditionals."""
    c = Conditionals(model, case, sampler, guidance)
    n, everything = len(c.masked), (1 << len(c.masked)) - 1
    p = (c.ids == np.array(draft)).all(1).astype(float)
    size = min(sampler.cells, n)
    for _ in range(sampler.steps):
        total = np.zeros(len(p))
        orders = list(itertools.permutations(range(n), size))
        for order in orders:
            rest = [j for j in range(n) if j not in order]
            keys = c.ids[:, rest]
            stay = np.array([p[(keys == key).all(1)].sum() for key in keys])  # what the rest had
            fill, revealed = np.ones(len(p)), everything & ~sum(1 << j for j in order)
            for j in order:
                fill = fill * c.of(revealed)[:, j]
                revealed |= 0 if sampler.parallel else 1 << j
            total += stay * fill
        p = total / len(orders)
    return Distribution(c.outcomes, p)
