"""ZipAR and grouped acceptance: exact at one end of their setting, an approximation in between, with the calls that they say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "exact"))
from enumeration import enumerated, gap, variation  # noqa: E402
from kit import Case, TabularCausal, alone, batch_of, causal_distribution  # noqa: E402

from gentok.rng import RowRNG  # noqa: E402
from gentok.samplers.grouped_jacobi import GroupedJacobi  # noqa: E402
from gentok.samplers.zipar import ZipAR  # noqa: E402
from gentok.types import UNKNOWN, Line, Raster, Tokens, TokenSpec  # noqa: E402

SMALL = TokenSpec((2,), Raster(2, 2))


def case_of(spec, known=0):
    codes = torch.full((1, spec.positions), UNKNOWN)
    codes[:, :known] = 1
    return Case(0, codes, spec.positions)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_with_a_lag_of_the_width_it_is_plain_autoregression(known):
    model, case = TabularCausal(SMALL, "raster"), case_of(SMALL, known)
    assert gap(enumerated(ZipAR(lag=2), model, case), causal_distribution(model, case, ZipAR())) < 1e-9


def test_with_a_shorter_lag_a_cell_does_not_see_the_end_of_the_row_above():
    model, case = TabularCausal(SMALL, "raster"), case_of(SMALL)
    right, found = causal_distribution(model, case, ZipAR()), enumerated(ZipAR(lag=1), model, case)
    assert 1e-3 < variation(found, right) < 0.5
    # cells 1 and 2 are drawn in one call: cell 2 from what the model says where cell 1 repeats cell 0
    joint = {tuple(outcome.flatten().tolist()): p for outcome, p in zip(found.outcomes, found.p)}
    table = {tuple(outcome.flatten().tolist()): p for outcome, p in zip(right.outcomes, right.p)}

    def mass(distribution, *start):
        return sum(p for outcome, p in distribution.items() if outcome[: len(start)] == start)

    for first, second, third in ((0, 1, 1), (1, 0, 0), (0, 0, 1)):
        shown = mass(table, first, first, third) / mass(table, first, first)
        assert mass(joint, first, second, third) / mass(joint, first, second) == pytest.approx(shown, rel=1e-9)


@pytest.mark.parametrize(("lag", "calls"), [(1, 3 + 4), (2, 6 + 4), (4, 16), (9, 16)])
def test_calls_are_those_of_the_staggered_rows(lag, calls):
    model = TabularCausal(TokenSpec((4,), Raster(4, 4)), "raster")
    _, condition, codes, lengths = batch_of([case_of(model.spec)], 5)
    out = ZipAR(lag=lag)(model, condition, rng=RowRNG.of(0, range(5)), known=Tokens(codes, model.spec), lengths=lengths)
    assert (out.calls == calls).all() and (out.tokens.codes >= 0).all()


@pytest.mark.parametrize("sampler", [ZipAR(lag=1), ZipAR(lag=2), GroupedJacobi(window=3, group=1, gap=0.3)], ids=str)
def test_a_row_of_a_batch_equals_that_row_alone(sampler):
    model = TabularCausal(TokenSpec((3,), Raster(3, 3)), "raster")
    together, by_itself = alone(sampler, model, [case_of(model.spec), case_of(model.spec, 2), case_of(model.spec, 9)], n=6)
    assert (together == by_itself).all()


def test_tokens_without_rows_are_refused():
    model = TabularCausal(TokenSpec((3,), Line(4)), "raster")
    _, condition, codes, lengths = batch_of([Case(0, torch.full((1, 4), UNKNOWN), 4)], 1)
    with pytest.raises(ValueError, match="zipar draws rows of an image of one level in raster order"):
        ZipAR()(model, condition, rng=RowRNG.of(0, range(1)), known=Tokens(codes, model.spec), lengths=lengths)


def test_groups_of_one_are_exact_and_larger_ones_accept_more_and_are_not():
    spec = TokenSpec((3,), Line(2))
    model, case = TabularCausal(spec, "raster"), Case(0, torch.full((1, 2), UNKNOWN), 2)
    right = causal_distribution(model, case, GroupedJacobi())
    assert gap(enumerated(GroupedJacobi(window=2, group=0), model, case), right) < 1e-9
    assert 1e-3 < variation(enumerated(GroupedJacobi(window=2, group=1, gap=0.5), model, case), right) < 0.9
    sampler, large = GroupedJacobi(window=4, gap=0.5), TabularCausal(TokenSpec((5,), Line(8)), "raster")
    _, condition, codes, lengths = batch_of([Case(0, torch.full((1, 8), UNKNOWN), 8)], 50)
    calls = [
        int(s(large, condition, rng=RowRNG.of(0, range(50)), known=Tokens(codes, large.spec), lengths=lengths).calls.sum())
        for s in (GroupedJacobi(window=4, group=0), sampler)
    ]
    assert calls[1] < calls[0]


def test_grouped_acceptance_is_a_rule_of_its_own():
    with pytest.raises(ValueError, match="set verify=standard; got verify=match"):
        GroupedJacobi(tail="gumbel", verify="match")
