"""First-hitting and ancestral sampling against their enumerated distributions, and the mutants that must
fall."""

import math

import pytest
import torch
from kit import (
    CLASSES,
    COMMON,
    SPECS,
    TabularMasked,
    agreement,
    alone,
    altered,
    batch_of,
    cases_of,
    checkered,
    masked_distribution,
    random_order_distribution,
    rejects,
    sample,
)  # fmt: skip
from masked_distributions import TimedMasked, ancestral_distribution, hitting_distribution
from random_weights import randomized

from gentok.generators.masked import MaskedTransformer
from gentok.rng import RowRNG
from gentok.samplers import first_hitting
from gentok.samplers.ancestral import Ancestral, expected_calls
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.guided import guided
from gentok.types import Class, Condition, Line, Tokens, TokenSpec

SETTINGS = {
    **COMMON,
    "linear guidance": ({"top_p": 0.9}, (2.0, "linear")),
}


def network(spec, **settings):
    model = MaskedTransformer(SPECS[spec], CLASSES, width=16, depth=2, heads=2, **settings).double().eval().requires_grad_(False)
    return randomized(model, len(spec))


# ----------------------------------------------------------------------------------------------------------- first hitting


@pytest.mark.parametrize("spec", SPECS)
def test_first_hitting_draws_the_joint_distribution_of_exact_conditionals(spec):
    model = TabularMasked(SPECS[spec])
    cases = cases_of(model)
    assert agreement(sample(FirstHitting(), model, cases, 2500), [masked_distribution(model, case) for case in cases]) > 1e-3


@checkered(most=2, setting=SETTINGS, spec=["k2", "k1"])
def test_first_hitting_draws_the_any_order_distribution_of_a_network(spec, setting):
    arguments, guidance = SETTINGS[setting]
    model, sampler = network(spec), FirstHitting(**arguments)
    cases = cases_of(model)[:: 1 if spec == "k1" else 2]
    distributions = [random_order_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 1200, seed=3), distributions) > 1e-3


@pytest.mark.parametrize("setting", ["plain", "temperature 0.7", "linear guidance"])
def test_first_hitting_draws_the_continuous_time_distribution_of_a_network_that_is_given_the_time(setting):
    arguments, guidance = SETTINGS[setting]
    model, sampler = TimedMasked(SPECS["k1"]), FirstHitting(**arguments)
    cases = cases_of(model)
    distributions = [hitting_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 4000), distributions) > 1e-3


def test_the_reference_of_continuous_time_is_the_limit_of_many_steps_and_the_any_order_distribution_without_time():
    model, case = network("k1"), cases_of(TabularMasked(SPECS["k1"]))[1]
    without = random_order_distribution(model, case, FirstHitting())
    assert abs(hitting_distribution(model, case, FirstHitting()).p - without.p).max() < 1e-12
    timed = TimedMasked(SPECS["k1"])
    truth = hitting_distribution(timed, case, FirstHitting()).p
    errors = [abs(ancestral_distribution(timed, case, Ancestral(steps=steps)).p - truth).sum() for steps in (4, 8, 16)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2] > 0


@pytest.mark.slow
def test_mutant_that_is_given_the_number_of_masked_cells_in_place_of_the_time():
    model, sampler = TimedMasked(SPECS["k1"]), FirstHitting()
    cases = cases_of(model)
    distributions = [hitting_distribution(model, case, sampler) for case in cases]

    def counted(logits, tokens, condition, t):
        share = tokens.masked.sum((1, 2)) / (tokens.codes != -1).sum((1, 2))
        return model.logits(tokens, condition, share)

    assert rejects(sample(sampler, altered(model, counted), cases, 15000), distributions)


@pytest.mark.slow
def test_mutant_that_is_given_the_time_of_the_hit_before():
    model, sampler = TimedMasked(SPECS["k1"]), FirstHitting()
    cases = cases_of(model)
    distributions = [hitting_distribution(model, case, sampler) for case in cases]
    late = altered(model, lambda logits, tokens, condition, t: model.logits(tokens, condition, t.sqrt()))
    assert rejects(sample(sampler, late, cases, 8000), distributions)


@pytest.mark.slow
def test_mutant_whose_order_is_not_uniform(monkeypatch):
    model, sampler = network("k1"), FirstHitting()
    cases = cases_of(model)
    distributions = [random_order_distribution(model, case, sampler) for case in cases]
    honest = first_hitting.hitting_shares

    def early_first(free, rng):
        return honest(free, rng) ** torch.where(free, 1.0 / (1 + torch.arange(free.shape[2])), 1.0)

    assert agreement(sample(sampler, model, cases, 2000), distributions) > 1e-3
    monkeypatch.setattr(first_hitting, "hitting_shares", early_first)
    assert rejects(sample(sampler, model, cases, 5000), distributions)


@pytest.mark.parametrize("order", [1, 2])
def test_two_cells_per_call_are_not_exact_and_say_so(order):
    model = TabularMasked(SPECS["k1"], scale=0.7)
    cases = cases_of(model)
    sampler = FirstHitting(cells_per_call=2, order=order)
    assert not sampler.exact and FirstHitting().exact and FirstHitting.exact
    assert rejects(sample(sampler, model, cases, 8000), [masked_distribution(model, case) for case in cases], within=0.15)


def test_extrapolation_is_linear_in_time_and_follows_a_network_that_is():
    """A network whose distribution moves linearly in time and sees nothing else: extrapolated to the cell's
    own time, two per call are exact."""
    spec = TokenSpec((2,), Line(6))

    class Moves(TimedMasked):
        def __init__(self):
            self.spec, self.condition_spec = spec, CLASSES

        def logits(self, tokens, condition, t=None):
            p = 0.1 + 0.8 * t.double()
            return torch.stack((p, 1 - p), -1).log()[:, None, None].expand(-1, 1, 6, -1)

    class Certain(FirstHitting):
        def __call__(self, *args, **options):
            self.__dict__["seen"] = []
            return super().__call__(*args, choose=self._look, **options)

        def _look(self, logits, rng):
            self.__dict__["seen"].append(logits.softmax(-1)[..., 0])
            return torch.zeros(logits.shape[:-1], dtype=torch.int64)

    sampler, rng = Certain(cells_per_call=2, order=2), RowRNG.of(0, range(50))
    shares = first_hitting.hitting_shares(torch.ones(50, 1, 6, dtype=torch.bool), RowRNG.of(0, range(50)))[:, 0]
    condition = Condition({"class": Class(torch.zeros(50, dtype=torch.int64))})
    sampler(Moves(), condition, rng=rng)
    by_cell = shares.sort(1, descending=True).values
    for i, seen in enumerate(sampler.__dict__["seen"]):
        want = 0.1 + 0.8 * by_cell[:, 2 * i : 2 * i + 2]
        if i == 0:
            want = want[:, :1].expand(-1, 2)
        else:  # the weight is at most 1
            gap = by_cell[:, 2 * i - 2] - by_cell[:, 2 * i]
            want = torch.maximum(want, (0.1 + 0.8 * (by_cell[:, 2 * i] - gap))[:, None])
        got, want = seen.sort(1).values, want.sort(1).values
        assert torch.allclose(got, want, atol=1e-9)


# --------------------------------------------------------------------------------------------------------------- ancestral


@checkered(schedule=["linear", "cosine"], steps=[1, 2, 3])
def test_ancestral_draws_its_own_distribution_of_so_many_steps(steps, schedule):
    model, sampler = network("k1"), Ancestral(steps=steps, schedule=schedule)
    cases = cases_of(model)
    distributions = [ancestral_distribution(model, case, sampler) for case in cases]
    assert agreement(sample(sampler, model, cases, 3000), distributions) > 1e-3


@checkered(setting=list(SETTINGS)[1:], cache=[True, False])
def test_ancestral_draws_its_distribution_filtered_guided_and_given_the_time(setting, cache):
    arguments, guidance = SETTINGS[setting]
    model, sampler = TimedMasked(SPECS["k1"]), Ancestral(steps=3, schedule="polynomial:1.5", cache=cache, **arguments)
    cases = cases_of(model)
    distributions = [ancestral_distribution(model, case, sampler, guidance) for case in cases]
    assert agreement(sample(sampler, guided(model, *guidance), cases, 3000), distributions) > 1e-3


def test_ancestral_of_two_levels_and_strides_draws_its_distribution():
    model, sampler = TabularMasked(SPECS["strided"]), Ancestral(steps=2)
    cases = cases_of(model)[1:]
    assert agreement(sample(sampler, model, cases, 4000), [ancestral_distribution(model, case, sampler) for case in cases]) > 1e-3


def test_ancestral_is_not_the_joint_distribution_and_nears_it_as_steps_grow():
    model = TabularMasked(SPECS["k1"], scale=2.0)
    case = cases_of(model)[0]
    truth = masked_distribution(model, case).p
    errors = [0.5 * abs(ancestral_distribution(model, case, Ancestral(steps=steps)).p - truth).sum() for steps in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 4 * errors[-1] > 0.05
    assert rejects(sample(Ancestral(steps=16), model, [case], 20000), [masked_distribution(model, case)])


def test_mutant_that_draws_from_a_stale_prediction():
    """What a cache does that is not renewed after a change: tolerance-based comparison of ids overlooks small
    ones."""
    model, sampler = TabularMasked(SPECS["k1"], scale=2.0), Ancestral(steps=3)
    cases = cases_of(model)
    distributions = [ancestral_distribution(model, case, sampler) for case in cases]

    def stale(logits, tokens, condition, t):
        """The distribution before the first position was revealed."""
        codes = tokens.codes.clone()
        codes[:, 0, :1] = torch.where(codes[:, 0, :1] >= 0, -2, codes[:, 0, :1])
        return model.logits(Tokens(codes, tokens.spec, tokens.lengths), condition, t)

    assert rejects(sample(sampler, altered(model, stale), cases, 6000), distributions)


@pytest.mark.parametrize("other", [{"steps": 4}, {"schedule": "cosine"}])
def test_mutants_with_the_move_chances_of_another_grid(other):
    model, sampler = TabularMasked(SPECS["k1"], scale=2.0), Ancestral(steps=3)
    cases = cases_of(model)
    distributions = [ancestral_distribution(model, case, sampler) for case in cases]
    assert rejects(sample(Ancestral(**{"steps": 3, **other}), model, cases, 8000), distributions)


def test_more_steps_than_anything_is_first_hitting_with_the_same_ids():
    for model in (network("k2"), TabularMasked(SPECS["strided"])):
        cases = cases_of(model)
        exact = torch.cat(sample(FirstHitting(), model, cases, 30))
        assert torch.equal(torch.cat(sample(Ancestral(steps=10**6), model, cases, 30)), exact)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
@pytest.mark.parametrize("make", [lambda: network("k2"), lambda: TimedMasked(SPECS["k1"])])
def test_a_cached_run_equals_the_uncached_one_row_by_row(make, schedule):
    model, settings = make(), {"steps": 25, "schedule": schedule, "temperature": 0.8}
    cases = cases_of(model)
    which, condition, codes, lengths = batch_of(cases, 20)

    def run(**options):
        return Ancestral(**settings, **options)(
            model, condition, rng=RowRNG.of(0, torch.arange(len(which))), known=Tokens(codes, model.spec), lengths=lengths
        )

    cached, plain = run(), run(cache=False)
    assert torch.equal(cached.tokens.codes, plain.tokens.codes)
    assert (cached.calls <= plain.calls).all() and (cached.calls <= (codes == -2).sum((1, 2))).all()
    assert cached.network_calls["generator"][1] == int(cached.calls.sum()) * codes[0].numel()


@pytest.mark.parametrize(("steps", "schedule"), [(5, "linear"), (40, "linear"), (1000, "linear"), (40, "cosine"), (40, "polynomial:3")])
def test_cached_calls_have_their_expected_number(steps, schedule):
    n, rows = 12, 1500
    model = TabularMasked(TokenSpec((1,), Line(n)))
    condition = Condition({"class": Class(torch.zeros(rows, dtype=torch.int64))})
    calls = Ancestral(steps=steps, schedule=schedule)(model, condition, rng=RowRNG.of(1, range(rows))).calls.double()
    want = expected_calls(n, steps, schedule)
    if schedule == "linear":
        assert want == pytest.approx(steps * (1 - (1 - 1 / steps) ** n), rel=1e-9)
    assert abs(float(calls.mean()) - want) < 4 * float(calls.std()) / math.sqrt(rows) + 1e-9


@pytest.mark.parametrize(
    "sampler", [FirstHitting(), FirstHitting(cells_per_call=2, order=2), Ancestral(steps=3), Ancestral(steps=6, cache=False)]
)
def test_a_row_of_a_batch_equals_that_row_alone(sampler):
    for model in (TabularMasked(SPECS["strided"]), network("k2"), TimedMasked(SPECS["k1"])):
        together, by_itself = alone(sampler, guided(model, 2.0, "linear"), cases_of(model), n=8)
        assert (together == by_itself).all()
