"""Watermarks: single items keep their distribution, and an item is the same in any batch.

Integrals over the key are exact; the rest are large samples with fixed seeds, p > 1e-4.
"""

import pytest
import torch
from kit import SPECS, TabularCausal, TabularMasked, agreement, batch_of, cases_of, causal_distribution, masked_distribution, sample
from scipy import stats
from watermark_kit import FREE, KINDS, items, mark_of

from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.jacobi import Jacobi
from gentok.types import Line, Tokens, TokenSpec
from gentok.watermarks import base
from gentok.watermarks.base import KeyMark
from gentok.watermarks.exp import EXP
from gentok.watermarks.kgw import KGW

# ------------------------------------------------------------------------------------------------------------ distribution


P = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.05])


def drawn(kind, n=60_000):
    """Pairs of ids of neighbouring places of many items: int64 [n, 2]."""
    spec = TokenSpec((6,), Line(2))
    mark = mark_of(kind, spec).start(RowRNG.of(0, torch.arange(n)), 2)
    logits = P.log().expand(n, 2, 6)
    return mark.choose(logits, RowRNG.of(1, torch.arange(n)), torch.tensor(0), torch.arange(2))


@pytest.mark.parametrize("kind", FREE)
def test_over_the_key_ids_follow_p_and_cells_are_independent(kind):
    ids = drawn(kind)
    joint = torch.bincount(ids[:, 0] * 6 + ids[:, 1], minlength=36).double().numpy()
    expected = len(ids) * (P[:, None] * P).flatten().numpy()
    possible = expected > 0
    assert not joint[~possible].any()
    assert stats.chisquare(joint[possible], expected[possible] * joint.sum() / expected.sum()).pvalue > 1e-4


def test_a_green_list_changes_the_distribution_and_says_so():
    share = torch.bincount(drawn("kgw").flatten(), minlength=6) / 120_000
    assert 0.5 * (share - P).abs().sum() > 0.05 and not KGW.distortion_free
    assert all(KINDS[kind].distortion_free for kind in FREE)


def exact_share(choose, p, monkeypatch):
    """The integral over both numbers of the key of the event that id 1 of two is chosen, p being its probability: for every number of id 0
    the threshold of that of id 1, found by bisection."""
    first = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    low, high = torch.zeros_like(first), torch.ones_like(first)  # of 1 - xi_1
    logits = torch.tensor([1 - p, p], dtype=torch.float64).log().expand(4000, 2)
    for _ in range(60):
        middle = (low + high) / 2
        monkeypatch.setattr(base, "uniform_of", lambda *names, rest=1 - middle: torch.stack((first, rest), 1))
        taken = choose(logits) == 1
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return float(low.mean())


def exp_choice(logits):
    return EXP().choose(logits, torch.tensor(0), torch.zeros(len(logits), dtype=torch.int64), None, RowRNG([0]))


def float32_choice(logits):
    xi = base.uniform_of().float()
    return (xi ** (1 / logits.exp().float())).argmax(-1)


@pytest.mark.parametrize("p", [0.3, 1e-3, 1e-9])
def test_the_integral_over_the_key_is_p(p, monkeypatch):
    assert abs(exact_share(exp_choice, p, monkeypatch) / p - 1) < 1e-3


def test_mutant_that_raises_float32_numbers_to_the_power_1_by_p(monkeypatch):
    assert abs(exact_share(float32_choice, 0.3, monkeypatch) / 0.3 - 1) < 1e-3
    assert exact_share(float32_choice, 1e-9, monkeypatch) > 1e-8


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("spec, layout", [("k1", "raster"), pytest.param("strided", "delayed", marks=pytest.mark.slow)])
def test_marked_items_of_a_causal_model_follow_its_distribution(kind, spec, layout):
    model, sampler = TabularCausal(SPECS[spec], layout), AutoregressiveSampler(temperature=0.9)
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler) for case in cases]
    samples = sample(sampler, model, cases, 600, mark=mark_of(kind, model.spec))
    assert agreement(samples, distributions) > 1e-4
    assert agreement(sample(sampler, model, cases, 600, mark=mark_of("kgw", model.spec)), distributions) < 1e-6


def test_marked_items_of_a_masked_model_follow_its_distribution():
    model = TabularMasked(SPECS["k1"])
    cases = cases_of(model)
    samples = sample(FirstHitting(), model, cases, 600, mark=mark_of("exp", model.spec))
    assert agreement(samples, [masked_distribution(model, case) for case in cases]) > 1e-4


# -------------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_the_row_in_a_batch(kind):
    model = TabularCausal(SPECS["k2"], "delayed")
    which, condition, codes, lengths = batch_of(cases_of(model), 3)
    mark = mark_of(kind, model.spec, length=64)

    def run(rows):
        known, rng = Tokens(codes[rows], model.spec), RowRNG.of(0, rows)
        return AutoregressiveSampler()(model, condition.rows(rows), rng=rng, known=known, lengths=lengths[rows], mark=mark).tokens.codes

    every = torch.arange(len(which))
    whole = run(every)
    assert torch.equal(whole, torch.cat([run(every[i : i + 1]) for i in every]))


def test_items_that_begin_at_the_same_place_of_a_key_are_the_same_and_others_are_not():
    """Pairs that share a key are correlated: that is what is given for the exact distribution of single ones."""
    mark = mark_of("exp", TokenSpec((16,), Line(24)), length=24)
    rng = RowRNG.of(0, torch.arange(60))
    starts, codes = mark.start(rng, 24).starts, items(60, mark).codes[:, 0]
    same = (codes[:, None] == codes).all(2)
    assert torch.equal(same, starts[:, None] == starts) and len(starts.unique()) > 15


def test_mutant_whose_items_all_begin_at_the_same_place(monkeypatch):
    monkeypatch.setattr(KeyMark, "start", lambda self, rng, positions: _fixed(self, rng))
    model, sampler = TabularCausal(SPECS["k1"], "raster"), AutoregressiveSampler()
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, sampler) for case in cases]
    assert agreement(sample(sampler, model, cases, 300, mark=mark_of("exp", model.spec)), distributions) < 1e-6


def _fixed(mark, rng):
    mark.starts = torch.zeros(rng.batch, dtype=torch.int64)
    return mark


@pytest.mark.parametrize("spec, layout", [("k1", "raster"), ("k2", "delayed")])
def test_speculative_decoding_by_the_rule_match_gives_the_ids_of_plain_marked_sampling(spec, layout):
    model = TabularCausal(SPECS[spec], layout)
    _, condition, codes, lengths = batch_of(cases_of(model), 20)
    mark = mark_of("exp", model.spec, length=64)

    def run(sampler):
        rng, known = RowRNG.of(0, torch.arange(len(codes))), Tokens(codes, model.spec)
        return sampler(model, condition, rng=rng, known=known, lengths=lengths, mark=mark)

    plain = run(AutoregressiveSampler())
    for window in (1, 3):
        fast = run(Jacobi(window=window, tail="gumbel", verify="match"))
        assert torch.equal(plain.tokens.codes, fast.tokens.codes)
    assert int(fast.calls.sum()) < int(plain.calls.sum())
