"""Detection by edit distance: the dynamic programme is the recursion of the paper, p-values of what is unmarked are uniform, and an item of
which positions were lost is found again."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from watermark_kit import items, mark_of

from gentok.rng import RowRNG
from gentok.types import Line, Tokens, TokenSpec
from gentok.watermarks import alignment
from gentok.watermarks.alignment import edit_distances
from gentok.watermarks.detection import detect, statistics


def levenshtein(cost, gap):
    """The paper's recursion, of rows (positions) and columns (steps of the key) of a table of costs."""

    @functools.cache
    def d(i, j):
        if i == len(cost) or j == len(cost[0]):
            return gap * (len(cost) - i + len(cost[0]) - j)
        return min(d(i + 1, j + 1) + cost[i][j], d(i + 1, j) + gap, d(i, j + 1) + gap)

    return d(0, 0)


def direct(mark, seed, codes, gap):
    """The smallest distance from any window of the key, which is a ring unrolled twice, window by window."""
    levels, n = mark.levels, mark.length
    present = (codes >= 0).any(0).nonzero()[:, 0]
    table = torch.zeros(int(present[-1] - present[0]) + 1, n, dtype=torch.float64)
    for k, p in (codes >= 0).nonzero().tolist():
        places, symbol = (torch.arange(n) + k) % n, mark.symbols(codes)[k, p].view(1, 1)
        cost = mark.watermark.cost(torch.tensor(seed).view(1, 1, 1), places, symbol, mark.vocab)
        table[p - int(present[0])] += cost.expand(1, 1, n)[0, 0]
    best, rings = gap * len(table), math.gcd(n, levels)
    for ring in range(rings):
        unrolled = table[:, [(ring + levels * i) % n for i in range(2 * n // rings)]]
        for start, end in itertools.combinations(range(unrolled.shape[1] + 1), 2):
            best = min(best, levenshtein(unrolled[:, start:end].tolist(), gap))
    return best


KEYS = [3, 4, 5]
CASES = [("exp", 1, 6, 2.0), ("its", 1, 6, 0.2), ("cluster", 2, 6, 1.0), ("exp", 3, 9, 0.5), ("exp", 2, 7, 1.0)]
"""(kind, levels, places, gap): with several rings of places, and with one."""


def case(kind, levels, length):
    mark = mark_of(kind, TokenSpec((6,) * levels, Line(4)), length=length, **({"size": 2} if kind == "cluster" else {}))
    codes = torch.randint(0, 6, (levels, 4), generator=torch.Generator().manual_seed(levels))
    codes[-1, 2] = -1  # of one level: a position without a cell between others
    return mark, codes


@pytest.mark.parametrize(("kind", "levels", "length", "gap"), CASES)
def test_the_programme_gives_the_smallest_distance_over_all_windows(kind, levels, length, gap):
    mark, codes = case(kind, levels, length)
    found = edit_distances(mark, torch.tensor(KEYS), codes, gap)
    assert (found - torch.tensor([direct(mark, seed, codes, gap) for seed in KEYS], dtype=torch.float64)).abs().max() < 1e-9


def test_mutant_that_passes_over_no_place_of_the_key(monkeypatch):
    class Standing:
        """Of a running minimum: where it stands."""

        def __init__(self, x):
            self.values = x

    monkeypatch.setattr(alignment.torch.Tensor, "cummin", lambda x, axis: Standing(x))
    different = []
    for kind, levels, length, gap in CASES:
        mark, codes = case(kind, levels, length)
        found = edit_distances(mark, torch.tensor(KEYS), codes, gap / 4)
        different += [float(x) - direct(mark, seed, codes, gap / 4) for x, seed in zip(found, KEYS)]
    assert max(different) > 1e-3


def test_a_dear_gap_leaves_the_smallest_sum_over_all_starts():
    spec = TokenSpec((16,), Line(12))
    mark, codes = mark_of("exp", spec, length=16), items(1, spec=spec).codes[0]
    assert (edit_distances(mark, torch.tensor(KEYS), codes, 1e3) - statistics(mark, torch.tensor(KEYS), codes)).abs().max() < 1e-9


def p_values(n, keys=19, own_gap=1.0):
    """Of n unmarked items, each asked for a key of its own."""
    spec = TokenSpec((16,), Line(8))
    mark, codes, out = mark_of("exp", spec, length=8), items(n, spec=spec).codes, []
    for row, of in zip(codes, RowRNG.of(5, torch.arange(n)).words(keys + 1).abs()):
        sums = edit_distances(mark, of, row, 1.0)
        own = sums[0] if own_gap == 1.0 else edit_distances(mark, of[:1], row, own_gap)[0]
        out.append((1 + int((sums[1:] <= own + 1e-9).sum())) / (keys + 1))
    return torch.tensor(out, dtype=torch.float64)


def uniformity(p):
    return stats.chisquare(torch.bincount((p * 20).round().long() - 1, minlength=20).numpy()).pvalue


def test_p_values_of_unmarked_items_are_uniform():
    assert uniformity(p_values(800)) > 1e-4


def test_mutant_that_asks_for_its_own_key_with_a_smaller_gap():
    assert uniformity(p_values(400, own_gap=0.5)) < 1e-6


def test_an_item_of_which_positions_were_lost_is_found_by_edit_distance_alone():
    spec = TokenSpec((16,), Line(64))
    mark = mark_of("exp", spec, length=128)
    codes = items(8, mark, spec=spec).codes
    kept = [p for p in range(64) if p % 9 != 8]  # seven positions are lost, one by one
    short = torch.cat((codes[..., kept], torch.full((8, 1, 7), -1)), 2)
    p = {gap: np.array([answer.p for answer in detect(mark, Tokens(short, spec), 99, gap=gap)]) for gap in (None, 3.0)}
    assert (p[3.0] <= 0.01).mean() >= 0.75 and (p[None] <= 0.01).mean() <= 0.5


def test_a_watermark_without_places_is_refused():
    with pytest.raises(ValueError, match="KGW has one for all: set alignment=shift"):
        edit_distances(mark_of("kgw", TokenSpec((16,), Line(4))), torch.tensor(KEYS), torch.zeros(1, 4, dtype=torch.int64), 1.0)
