"""The exactness kit: is what a sampler draws the distribution that its model, filters and guidance define?

How a new sampler uses it (tests/exact/test_exact_autoregressive.py is the example):

    model = TabularCausal(SPECS["k1"], "raster")    or TabularMasked, or any small generator in float64
    cases = cases_of(model)                         rows of different classes, lengths and known cells
    distributions = [causal_distribution(model, case, sampler, guidance) for case in cases]
    codes = sample(sampler, guided(model, *guidance), cases, n=5000, seed=0)    every case n times, shuffled
    assert agreement(codes, distributions) > 1e-3

`agreement` is the p-value of Pearson's chi-square summed over the cases. A check is worth something only if
it can fail: for each way in which your sampler could be wrong, write a mutant and assert with `rejects` that
it lies within 0.1 total variation of the truth, and yet falls at p < 1e-6.

`causal_distribution` is for Causal models; `random_order_distribution` for Masked ones whose cells are drawn
one at a time, each order as likely; `masked_distribution` for the table whose conditionals agree, so that
every order has the same distribution. A sampler of another capability needs one of its own: enumerate the ids
of the masked cells (`completions`) and score them with the model's own outputs. The reference reads logits
from uncached passes and filters and guides them with numpy code of its own, so it shares no line with the
library's.

`alone` gives each row of a batch sampled by itself, and `near_tie` says whether a row hangs on the last
digits of its logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gentok.generators.base import Causal, Masked, NextScale, Refines
from gentok.layouts import Layout
from gentok.rng import RowRNG
from gentok.types import ABSENT, NULL_CLASS, UNKNOWN, Class, ClassSpec, Condition, ConditionSpec, Line, Tokens, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b"))),))
SPECS = {
    "k1": TokenSpec((3,), Line(4)),
    "k2": TokenSpec((3, 2), Line(3)),
    "strided": TokenSpec((3, 2), Line(4), strides=(2, 1)),
}
LAYOUTS = {
    "k1": ("auto", "raster", "level_major", "position_major", "delayed", "parallel"),
    "k2": ("level_major", "position_major", "delayed", "parallel"),
    "strided": ("level_major", "position_major", "delayed", "parallel"),
}
PLAIN = (1.0, "constant")
COMMON: dict[str, tuple[dict[str, Any], tuple[float, str]]] = {
    "plain": ({}, PLAIN),
    "temperature 0.7": ({"temperature": 0.7}, PLAIN),
    "top-k 2": ({"top_k": 2}, PLAIN),
    "guidance 2": ({}, (2.0, "constant")),
}
"""What every sampler is tested with: its arguments, and guidance with its schedule."""


# ------------------------------------------------------------------------------------------------------------------ models


def checkered(*, most: int | None = None, **axes: Sequence[Any]) -> Any:
    """pytest's parametrize over all combinations of the axes, of which the default suite runs a covering array, and the slow tests the
    others. Of three axes and more every two values meet in one of its cells; of two axes every value occurs. With `most` it runs no more
    than so many cells, in which every value should occur: for samples of what another test enumerates path by path."""
    lists = [list(values) for values in axes.values()]
    cells = list(itertools.product(*(range(len(values)) for values in lists)))
    groups = list(itertools.combinations(range(len(lists)), 2 if len(lists) > 2 and most is None else 1))
    together = {cell: {(group, tuple(cell[i] for i in group)) for group in groups} for cell in cells}
    left, quick = set().union(*together.values()), []
    while left and len(quick) != most:
        quick.append(max(cells, key=lambda cell: len(together[cell] & left)))  # of equal ones the first
        left -= together[quick[-1]]
    params = [
        pytest.param(*(values[i] for values, i in zip(lists, cell)), marks=() if cell in quick else pytest.mark.slow) for cell in cells
    ]
    return pytest.mark.parametrize(list(axes), params)


def _mix(state: Tensor, ids: Tensor) -> Tensor:
    """int64 [...] histories, then one step of ids [..., G] more."""
    for g in range(ids.shape[-1]):
        state = state * 6364136223846793005 + (ids[..., g] + 7) * 1442695040888963407
        state = state ^ (state >> 29)
    return state


@dataclass
class _TableCache:
    state: Tensor  # int64 [B, capacity + 1]: the history before each fed step
    fed: Tensor  # int64 [B]: steps that were committed
    last: tuple[Tensor, Tensor] | None = None  # (at, histories [B, S]) of the last call


class TabularCausal(Causal):
    """A Causal model without a network: each history (class, fed ids in order) has a distribution of its own,
    looked up by a hash.

    Nothing is shared between histories, so a sampler that feeds a wrong id, a wrong order or a stale step
    draws from another table. It checks the contract as it goes: ids must be codes or ABSENT, steps must be
    committed, capacity must be kept.
    """

    exact_slots = True

    def __init__(self, spec: TokenSpec, layout: str = "auto", scale: float = 1.0, seed: int = 0):
        self.spec, self.condition_spec, self.layout, self.scale, self.seed = spec, CLASSES, Layout.of(layout, spec), scale, seed
        self.begin = torch.full((self.layout.slots,), spec.vocab + 1)

    def init_cache(self, condition: Condition, batch: int, capacity: int) -> _TableCache:
        state = torch.zeros(batch, capacity + 1, dtype=torch.int64)
        state[:, 0] = _mix(torch.full((batch,), self.seed), condition.parts["class"].ids[:, None])
        return _TableCache(state, torch.zeros(batch, dtype=torch.int64))

    def logits(self, ids: Tensor, cache: _TableCache, at: Tensor, parents: Tensor | None = None) -> Tensor:
        batch, width, slots = ids.shape
        assert (at >= 0).all() and (at <= cache.fed).all(), "fed at a step whose predecessors were not committed"
        assert int(at.max()) + width <= cache.state.shape[1] - 1, "more steps fed than the cache has room for"
        first = at[:, None].eq(0) if parents is None else at[:, None].eq(0) & parents.eq(ABSENT)
        if parents is None:
            first = first & (torch.arange(width) == 0)
        assert (ids[first] == self.begin).all(), "fed step 0 must be begin"
        assert ((ids < self.spec.vocab) & (ids >= ABSENT))[~first].all(), "fed ids must be codes or ABSENT"
        before = cache.state.gather(1, at[:, None])[:, 0]
        states, depths = [], []
        for s in range(width):
            if parents is None:
                parent, depth = (states[-1], depths[-1] + 1) if s else (before, at)
            else:
                pool, known = torch.stack([*states, before], 1), torch.stack([*depths, at - 1], 1)
                pick = torch.where(parents[:, s] < 0, torch.full_like(at, s), parents[:, s])[:, None]
                parent, depth = pool.gather(1, pick)[:, 0], known.gather(1, pick)[:, 0] + 1
            states.append(_mix(parent, ids[:, s]))
            depths.append(depth)
        history, depth = torch.stack(states, 1), torch.stack(depths, 1)
        cache.last = (at, history)
        out = RowRNG(history.reshape(-1)).normal(slots, self.spec.vocab).view(batch, width, slots, -1) * self.scale
        vocab = self.layout.vocab[depth.clamp(max=self.layout.steps - 1)]
        return out.masked_fill(torch.arange(self.spec.vocab) >= vocab[..., None], -torch.inf)

    def commit(self, cache: _TableCache, at: Tensor, path: Tensor | None = None) -> None:
        was, history = cache.last
        assert (was == at).all(), "commit must name the steps of the last call"
        if path is None:
            path = torch.arange(history.shape[1]).expand(len(at), -1)
        for p in range(path.shape[1]):
            rows = (path[:, p] >= 0).nonzero()[:, 0]
            cache.state[rows, at[rows] + p + 1] = history[rows, path[rows, p]]
        cache.fed = at + (path >= 0).sum(1)


class TabularMasked(Masked):
    """A Masked model with exact conditionals: of a joint distribution over all cells, one per class, it gives
    p(cell | present cells)."""

    uses_time = False

    def __init__(self, spec: TokenSpec, scale: float = 1.0, seed: int = 0):
        self.spec, self.condition_spec = spec, CLASSES
        self.cells = spec.exists().nonzero()
        sizes = [spec.vocab_sizes[k] for k, _ in self.cells.tolist()]
        self.outcomes = torch.tensor(list(itertools.product(*map(range, sizes))))  # [M, C]
        classes = len(CLASSES.parts[0][1].names) + 1  # the last row is the null class
        self.joint = (RowRNG(torch.arange(classes) + 100 * seed).normal(len(self.outcomes)) * scale).softmax(1)

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        codes = tokens.codes[:, self.cells[:, 0], self.cells[:, 1]]  # [B, C]
        agrees = (codes[:, None] < 0) | (codes[:, None] == self.outcomes)  # [B, M, C]
        weight = self.joint[condition.parts["class"].ids] * agrees.all(2)
        one_hot = torch.nn.functional.one_hot(self.outcomes, self.spec.vocab).double()  # [M, C, V]
        marginal = torch.einsum("bm,mcv->bcv", weight, one_hot)
        out = torch.full((*tokens.codes.shape, self.spec.vocab), torch.nan, dtype=torch.float64)
        out[:, self.cells[:, 0], self.cells[:, 1]] = marginal.log()
        return out


# ------------------------------------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """One kind of row: its class, its length and its codes with masked cells."""

    class_id: int
    codes: Tensor  # [K, N]
    length: int


def cases_of(model: Causal | Masked | NextScale | Refines) -> list[Case]:
    """Rows of several classes (also null), lengths and known sets; the known cells precede the masked cells
    where the model has an order."""
    spec, n = model.spec, model.spec.positions
    out = []
    for class_id, length, known in ((0, n, 0), (1, n - 1, 1), (NULL_CLASS, n, 3), (0, n - 2, 0), (1, n, 2)):
        codes = Tokens.unknown(spec, 1, torch.tensor([length])).codes[0]
        cells = spec.exists().nonzero()
        ordered = model.coarse if isinstance(model, Refines) else model
        if isinstance(ordered, Causal):
            step, slot = ordered.layout.step[tuple(cells.T)], ordered.layout.slot[tuple(cells.T)]
            cells = cells[(step * 100 + slot).argsort()]
        elif not isinstance(model, NextScale):  # whose positions are in the order of their scales
            cells = cells.flip(0)  # the last cells: no prefix of any raster
        cells = [(k, p) for k, p in cells.tolist() if p < length]
        for i, (k, p) in enumerate(cells[:known]):
            codes[k, p] = (i + 1) % spec.vocab_sizes[k]
        out.append(Case(class_id, codes, length))
    return out


def completions(codes: Tensor, spec: TokenSpec) -> Tensor:
    """int64 [M, K, N]: every way to fill the masked cells of codes [K, N]."""
    masked_cells = (codes == UNKNOWN).nonzero()
    fillings = list(itertools.product(*(range(spec.vocab_sizes[k]) for k, _ in masked_cells.tolist())))
    out = codes.expand(len(fillings), *codes.shape).clone()
    out[:, masked_cells[:, 0], masked_cells[:, 1]] = torch.tensor(fillings, dtype=torch.int64).view(len(fillings), len(masked_cells))
    return out


# --------------------------------------------------------------------------------------------------------- reference distributions


def reference_filter(logits: np.ndarray, sampler: Any) -> np.ndarray:
    """Logits of one id -> its filtered distribution, one step after the other in plain numpy."""
    possible = np.isfinite(logits)
    if sampler.temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    p = np.where(possible, np.exp((logits - logits[possible].max()) / sampler.temperature), 0.0)
    p /= p.sum()

    def keep(order: np.ndarray, mass: float) -> np.ndarray:
        kept, total = np.zeros(len(p), bool), 0.0
        for v in order:
            if total >= mass - 1e-12:
                break
            kept[v], total = True, total + p[v]
        return np.where(kept, p, 0.0) / p[kept].sum()

    if sampler.top_k is not None:
        kept = np.argsort(-p, kind="stable")[: sampler.top_k]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0.0)
        p /= p.sum()
    if sampler.top_p is not None:
        p = keep(np.argsort(-p, kind="stable"), sampler.top_p)
    if sampler.min_p is not None:
        p = np.where(p >= sampler.min_p * p.max(), p, 0.0)
        p /= p.sum()
    if sampler.typical is not None:
        surprise = np.where(p > 0, -np.log(np.where(p > 0, p, 1.0)), np.inf)
        entropy = (p[p > 0] * surprise[p > 0]).sum()
        p = keep(np.argsort(np.abs(surprise - entropy), kind="stable"), sampler.typical)
    return p


def reference_scale(scale: float, schedule: str, progress: float) -> float:
    share = {"constant": 1.0, "linear": progress, "cosine": 0.5 - 0.5 * np.cos(np.pi * progress)}[schedule]
    return 1.0 + (scale - 1.0) * share


def reference_guided(l_c: np.ndarray, l_u: np.ndarray, strength: float) -> np.ndarray:
    """l_u + g (l_c - l_u); an id that is impossible on either side stays impossible."""
    out = np.full(l_c.shape, -np.inf)
    possible = np.isfinite(l_c) & np.isfinite(l_u)
    out[possible] = l_u[possible] + strength * (l_c[possible] - l_u[possible])
    return out


@dataclass
class Distribution:
    """The distribution of one case: outcomes int64 [M, K, N] and their probabilities float64 [M]."""

    outcomes: Tensor
    p: np.ndarray
    index: dict[bytes, int] = field(init=False)

    def __post_init__(self) -> None:
        assert abs(self.p.sum() - 1) < 1e-9, f"the distribution sums to {self.p.sum()}"
        self.index = {row.numpy().tobytes(): i for i, row in enumerate(self.outcomes.contiguous())}

    def counts(self, codes: Tensor) -> tuple[np.ndarray, int]:
        """How often each outcome occurs in codes [n, K, N], and how many rows are no outcome at all."""
        rows, n = torch.unique(codes, dim=0, return_counts=True)
        counts, foreign = np.zeros(len(self.p)), 0
        for row, times in zip(rows, n.tolist()):
            at = self.index.get(row.contiguous().numpy().tobytes())
            if at is None:
                foreign += times
            else:
                counts[at] += times
        return counts, foreign


@torch.no_grad()
def causal_distribution(model: Causal, case: Case, sampler: Any, guidance: tuple[float, str] = (1.0, "constant")) -> Distribution:
    """The joint distribution of the masked cells of a case, from the model's own logits in a single uncached
    pass per branch."""
    layout = model.layout
    outcomes = completions(case.codes, model.spec)
    ids = layout.flatten(outcomes)  # [M, S, G]
    m, steps, slots = ids.shape
    fed = torch.cat([model.begin.expand(m, 1, slots), ids[:, :-1]], 1)
    scale, schedule = guidance

    def branch(class_id: int) -> np.ndarray:
        cache = model.init_cache(Condition({"class": Class(torch.full((m,), class_id))}), m, steps)
        return model.logits(fed, cache, torch.zeros(m, dtype=torch.int64)).double().numpy()

    conditional = branch(case.class_id)
    null = branch(NULL_CLASS) if scale != 1 else conditional
    log_p = np.zeros(m)
    for k, n in (case.codes == UNKNOWN).nonzero().tolist():
        s, g = int(layout.step[k, n]), int(layout.slot[k, n])
        strength = reference_scale(scale, schedule, s / max(steps - 1, 1))
        vocab = model.spec.vocab_sizes[k]
        l_c, l_u = conditional[:, s, g, :vocab], null[:, s, g, :vocab]
        assert np.isneginf(conditional[:, s, g, vocab:]).all(), "ids beyond a level's vocabulary must have logit -inf"
        cache: dict[bytes, np.ndarray] = {}
        for row in range(m):
            mixed = reference_guided(l_c[row], l_u[row], strength)
            key = mixed.tobytes()
            if key not in cache:
                cache[key] = reference_filter(mixed, sampler)
            with np.errstate(divide="ignore"):
                log_p[row] += np.log(cache[key][outcomes[row, k, n]])
    return Distribution(outcomes, np.exp(log_p))


def masked_distribution(model: TabularMasked, case: Case) -> Distribution:
    """The joint distribution of the masked cells of a case given its known cells: what any exact sampler of a
    model with exact conditionals must draw."""
    outcomes = completions(case.codes, model.spec)
    codes = outcomes[:, model.cells[:, 0], model.cells[:, 1]]
    joint = model.joint[case.class_id]
    weight = torch.stack([joint[((row < 0) | (row == model.outcomes)).all(1)].sum() for row in codes])
    return Distribution(outcomes, (weight / weight.sum()).numpy())


@torch.no_grad()
def random_order_distribution(model: Masked, case: Case, sampler: Any, guidance: tuple[float, str] = (1.0, "constant")) -> Distribution:
    """The joint distribution of the masked cells where one cell at a time is drawn, in an order that is
    uniform over the cells: the any-order distribution of a Masked model.

    With f(S) the probability that exactly the cells of S, with their ids of an outcome, were drawn in the
    first |S| steps: f(S) = sum over i in S of f(S - i) p(x_i | known, x of S - i) / (masked cells - |S| + 1).
    """
    outcomes, spec = completions(case.codes, model.spec), model.spec
    masked_cells = (case.codes == UNKNOWN).nonzero().tolist()
    m, count = len(outcomes), len(masked_cells)
    cells = count + int((case.codes >= 0).sum())
    scale, schedule = guidance

    def branch(codes: Tensor, class_id: int, t: Tensor) -> np.ndarray:
        condition = Condition({"class": Class(torch.full((m,), class_id))})
        return model.logits(Tokens(codes, spec, torch.full((m,), case.length)), condition, t).double().numpy()

    f = {0: np.ones(m)}
    for size in range(count):
        for done in [s for s in range(2**count) if bin(s).count("1") == size]:
            codes = outcomes.clone()
            left = [j for j in range(count) if not done >> j & 1]
            for j in left:
                codes[:, masked_cells[j][0], masked_cells[j][1]] = UNKNOWN
            t = torch.full((m,), len(left) / cells)
            strength = reference_scale(scale, schedule, 1 - len(left) / cells)
            conditional = branch(codes, case.class_id, t)
            null = branch(codes, NULL_CLASS, t) if scale != 1 else conditional
            cache: dict[bytes, np.ndarray] = {}
            for j in left:
                k, n = masked_cells[j]
                step = np.zeros(m)
                for row in range(m):
                    l_c, l_u = (x[row, k, n, : spec.vocab_sizes[k]] for x in (conditional, null))
                    mixed = reference_guided(l_c, l_u, strength)
                    key = mixed.tobytes()
                    if key not in cache:
                        cache[key] = reference_filter(mixed, sampler)
                    step[row] = cache[key][outcomes[row, k, n]]
                f[done | 1 << j] = f.get(done | 1 << j, 0) + f[done] * step / len(left)
    return Distribution(outcomes, f[2**count - 1])


# --------------------------------------------------------------------------------------------------- sampling and verdicts


def batch_of(cases: Sequence[Case], n: int, seed: int = 0) -> tuple[Tensor, Condition, Tensor, Tensor]:
    """Every case n times, shuffled: (case of each row [B], condition, codes [B, K, N], lengths [B])."""
    which = torch.arange(len(cases)).repeat_interleave(n)[RowRNG([seed]).permutation(n * len(cases))[0]]
    classes = torch.tensor([c.class_id for c in cases])[which]
    lengths = torch.tensor([c.length for c in cases])[which]
    return which, Condition({"class": Class(classes)}), torch.stack([c.codes for c in cases])[which], lengths


def sample(sampler: Any, model: Any, cases: Sequence[Case], n: int, seed: int = 0, **options: Any) -> list[Tensor]:
    """n samples of every case, drawn in one shuffled batch: a list of codes [n, K, N]."""
    which, condition, codes, lengths = batch_of(cases, n, seed)
    rng = RowRNG.of(seed, torch.arange(len(which)))
    out = sampler(model, condition, rng=rng, known=Tokens(codes, model.spec), lengths=lengths, **options)
    return [out.tokens.codes[which == i] for i in range(len(cases))]


def chi_square(counts: np.ndarray, foreign: int, p: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; outcomes are pooled, the rarest first, until each bin
    expects 5 samples. A sample that the distribution excludes makes the statistic infinite."""
    n = counts.sum()
    if foreign or counts[p == 0].sum():
        return float("inf"), 1
    order = np.argsort(p)
    bins, seen, expected = [], 0.0, 0.0
    for i in order:
        seen, expected = seen + counts[i], expected + n * p[i]
        if expected >= 5:
            bins.append((seen, expected))
            seen = expected = 0.0
    if expected > 0 and bins:
        bins[-1] = (bins[-1][0] + seen, bins[-1][1] + expected)
    return sum((o - e) ** 2 / e for o, e in bins), max(len(bins) - 1, 0)


def agreement(samples: Sequence[Tensor], distributions: Sequence[Distribution]) -> float:
    """The p-value of the hypothesis that every case was drawn from its distribution."""
    pairs = [chi_square(*distribution.counts(codes), distribution.p) for codes, distribution in zip(samples, distributions)]
    dof = sum(d for _, d in pairs)
    return float(stats.chi2.sf(sum(x for x, _ in pairs), dof)) if dof else float(all(x == 0 for x, _ in pairs))


def distance(samples: Sequence[Tensor], distributions: Sequence[Distribution]) -> float:
    """The mean total variation distance of the samples' frequencies from the distributions; biased upwards by
    `floor`."""
    out = []
    for codes, distribution in zip(samples, distributions):
        counts, foreign = distribution.counts(codes)
        out.append(0.5 * (np.abs(counts / len(codes) - distribution.p).sum() + foreign / len(codes)))
    return float(np.mean(out))


def floor(distributions: Sequence[Distribution], n: int) -> float:
    """What `distance` is on average for n exact draws per case (normal approximation of each frequency)."""
    return float(
        np.mean([0.5 * np.sqrt(2 / np.pi) * np.sqrt(distribution.p * (1 - distribution.p) / n).sum() for distribution in distributions])
    )


def rejects(samples: Sequence[Tensor], distributions: Sequence[Distribution], within: float = 0.1) -> bool:
    """Whether a mutant's samples are near the truth (total variation below `within`, sampling error included)
    and fall nevertheless."""
    near, p = distance(samples, distributions), agreement(samples, distributions)
    print(f"mutant: distance {near:.3f}, p {p:.1e}")
    return near < within and p < 1e-6


# ---------------------------------------------------------------------------------------------------------- rows by themselves


def alone(sampler: Any, model: Any, cases: Sequence[Case], n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(codes of the batch, codes of each of its rows sampled by itself) for a batch of every case n times."""
    which, condition, codes, lengths = batch_of(cases, n, seed)
    index = torch.arange(len(which))

    def run(rows: Tensor) -> Tensor:
        known = Tokens(codes[rows], model.spec)
        return sampler(model, condition.rows(rows), rng=RowRNG.of(seed, index[rows]), known=known, lengths=lengths[rows]).tokens.codes

    return run(index), torch.cat([run(index[i : i + 1]) for i in index])


def near_tie(sampler: Any, model: Any, cases: Sequence[Case], n: int, row: int, seed: int = 0, tries: int = 40, size: float = 1e-5) -> bool:
    """Whether changes of the logits by about `size` change what this row draws by itself: then rounding
    decides it."""
    which, condition, codes, lengths = batch_of(cases, n, seed)
    at = torch.tensor([row])
    seen = set()
    for attempt in range(tries):
        shaken = Shaken(model, size, attempt)
        known = Tokens(codes[at], model.spec)
        out = sampler(shaken, condition.rows(at), rng=RowRNG.of(seed, at), known=known, lengths=lengths[at])
        seen.add(out.tokens.codes.numpy().tobytes())
    return len(seen) > 1


def Shaken(model: Any, size: float, seed: int) -> Any:
    """The model with normal noise of standard deviation `size` on its logits."""

    def change(logits: Tensor) -> Tensor:
        return logits + RowRNG([seed]).normal(*logits.shape)[0].to(logits) * size

    return altered(model, lambda logits, *_: change(logits))


def altered(model: Any, change: Any) -> Any:
    """A generator of the same capability whose logits are change(logits, *arguments of the call): the stuff
    of mutants."""
    if isinstance(model, Causal):

        class AlteredCausal(Causal):
            spec, condition_spec, layout = model.spec, model.condition_spec, model.layout
            exact_slots, begin, branches = model.exact_slots, model.begin, model.branches
            init_cache, commit = staticmethod(model.init_cache), staticmethod(model.commit)

            def logits(self, ids: Tensor, cache: Any, at: Tensor, parents: Tensor | None = None) -> Tensor:
                return change(model.logits(ids, cache, at, parents), ids, cache, at)

        return AlteredCausal()

    class AlteredMasked(Masked):
        spec, condition_spec, uses_time = model.spec, model.condition_spec, model.uses_time

        def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
            return change(model.logits(tokens, condition, t), tokens, condition, t)

    return AlteredMasked()
