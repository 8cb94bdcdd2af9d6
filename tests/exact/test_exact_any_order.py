"""One cell per call and any-subset speculation draw the enumerated distribution of any order and any known
cells; near misses are noticed."""

import pytest
import torch
from any_order_kit import TabularAnyOrder, mean_distribution, ordered_distribution, subsets
from kit import COMMON, SPECS, agreement, alone, batch_of, cases_of, checkered, distance, floor, rejects, sample
from test_exact_networks import network

from gentok.generators.any_order import AnyOrderTransformer
from gentok.rng import RowRNG
from gentok.samplers import any_subset
from gentok.samplers.any_order import AnyOrderSampler
from gentok.samplers.any_subset import AnySubset
from gentok.samplers.draws import exponential_race
from gentok.samplers.guided import guided
from gentok.types import Tokens

SETTINGS = {
    **COMMON,
    "linear guidance, top-p, min-p": ({"top_p": 0.8, "min_p": 0.1}, (2.0, "linear")),
}
SAMPLERS = {"any_order": AnyOrderSampler, "any_subset": AnySubset}


def run(model, name, setting, n=2500, seed=1, cases=None, choose=None, **options):
    arguments, guidance = SETTINGS[setting]
    sampler, cases = SAMPLERS[name](**arguments, **options), cases or cases_of(model)
    distribution = mean_distribution if sampler.order == "random" else ordered_distribution
    return sample(sampler, guided(model, *guidance), cases, n, seed, choose=choose), [
        distribution(model, case, sampler, guidance) for case in cases
    ]


@checkered(name=SAMPLERS, spec=SPECS, setting=SETTINGS)
def test_every_filter_draws_the_enumerated_distribution(name, spec, setting):
    assert agreement(*run(TabularAnyOrder(SPECS[spec]), name, setting)) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_every_number_of_drafts_draws_the_distribution(k):
    assert agreement(*run(TabularAnyOrder(SPECS["k1"]), "any_subset", "plain", k=k)) > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_random_orders_draw_the_mean_of_the_orders_distributions(name):
    assert agreement(*run(TabularAnyOrder(SPECS["k1"]), name, "temperature 0.7", order="random")) > 1e-3


def test_a_race_of_exponentials_draws_the_same_distribution():
    assert agreement(*run(TabularAnyOrder(SPECS["k2"]), "any_subset", "temperature 0.7", choose=exponential_race)) > 1e-3


@pytest.mark.parametrize("k", [2, 5])
def test_all_subsets_are_drawn_at_the_floor_and_never_with_more_calls_than_cells(k):
    model, n = TabularAnyOrder(SPECS["k1"]), 800
    cases = subsets(model.spec)
    assert len(cases) == 16
    samples, distributions = run(model, "any_subset", "plain", n, cases=cases, k=k)
    assert agreement(samples, distributions) > 1e-3
    assert distance(samples, distributions) < 1.2 * floor(distributions, n)
    _, condition, codes, lengths = batch_of(cases, 50)
    out = AnySubset(k=k)(model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths)
    masked_cells = (codes == -2).sum((1, 2))
    assert (out.calls <= masked_cells).all() and (out.calls[masked_cells == 0] == 0).all() and (out.calls[masked_cells == 1] == 1).all()
    assert (out.calls < masked_cells)[masked_cells > 2].any()


@checkered(name=SAMPLERS, setting=["plain", "top-k 2", "guidance 2"])
def test_a_network_draws_its_enumerated_distribution(name, setting):
    assert agreement(*run(network(AnyOrderTransformer, "k1"), name, setting, n=600)) > 1e-3


def test_a_network_of_two_levels_draws_its_distribution_with_linear_guidance():
    assert (
        agreement(*run(network(AnyOrderTransformer, "k2", condition_by="adaln"), "any_subset", "linear guidance, top-p, min-p", 500)) > 1e-3
    )


# ----------------------------------------------------------------------------------------------------------------- mutants


def mutant(sampler, model=None, setting="plain", n=10_000):
    arguments, guidance = SETTINGS[setting]
    model = model or TabularAnyOrder(SPECS["k1"], scale=0.5)
    cases = cases_of(model)
    distributions = [ordered_distribution(model, case, sampler, guidance) for case in cases]
    return sample(sampler, guided(model, *guidance), cases, n, seed=2), distributions


def test_the_sampler_that_the_mutants_come_from_is_exact():
    assert agreement(*mutant(AnySubset())) > 1e-3


def test_mutant_that_draws_from_p_and_not_from_the_residual(monkeypatch):
    monkeypatch.setattr(any_subset, "residual", lambda p, q: p.log())
    assert rejects(*mutant(AnySubset()))


def test_mutant_that_draws_from_the_reversed_residual(monkeypatch):
    right = any_subset.residual
    monkeypatch.setattr(any_subset, "residual", lambda p, q: right(q, p))
    assert rejects(*mutant(AnySubset(), TabularAnyOrder(SPECS["k1"], scale=0.2)))


class Accepting(AnySubset):
    """A mutant that looks at other distributions when it accepts."""

    def _accept(self, p, q, guesses, left, rng):
        return super()._accept(*self.other(p, q), guesses, left, rng)


def test_mutant_that_stored_another_distribution_than_it_drafted_from():
    class Uniform(Accepting):
        def other(self, p, q):
            return p, torch.full_like(q, 1 / 3)

    assert rejects(*mutant(Uniform()))


def test_mutant_that_accepts_by_the_inverse_ratio():
    class Inverse(Accepting):
        def other(self, p, q):
            return q, p

    assert rejects(*mutant(Inverse(), TabularAnyOrder(SPECS["k1"], scale=0.2)))


def test_mutant_that_accepts_every_draft():
    class Every(Accepting):
        def other(self, p, q):
            return torch.ones_like(p), q

    assert rejects(*mutant(Every(), TabularAnyOrder(SPECS["k1"], scale=0.2)))


def test_mutant_that_takes_the_next_cells_distribution_after_a_rejection():
    class Bonus(AnySubset):
        def _accept(self, p, q, guesses, left, rng):
            kept, drafted = super()._accept(p, q, guesses, left, rng)
            return torch.where((kept < drafted) & (kept < left - 1), kept + 1, kept), drafted  # the rejected draft stays

    assert rejects(*mutant(Bonus()))


def test_mutant_that_compares_distributions_before_the_temperature():
    class Plain(AnySubset):
        def _accept(self, p, q, guesses, left, rng):
            return super()._accept(p.pow(0.7), q.pow(0.7), guesses, left, rng)

    assert rejects(*mutant(Plain(temperature=0.7), setting="temperature 0.7"))


# -------------------------------------------------------------------------------------------------------------- rows alone


@checkered(name=SAMPLERS, spec=SPECS, order=["left_to_right", "random"])
def test_a_row_of_a_batch_equals_that_row_alone(name, spec, order):
    model = TabularAnyOrder(SPECS[spec])
    together, by_itself = alone(SAMPLERS[name](order=order, top_p=0.9), guided(model, 2.0, "linear"), cases_of(model), n=8)
    assert (together == by_itself).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_of_a_networks_float64_batch_equals_that_row_alone(name):
    model = guided(network(AnyOrderTransformer, "k2"), 2.0, "linear")
    together, by_itself = alone(SAMPLERS[name](), model, cases_of(model), n=8)
    assert (together == by_itself).all()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 1}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_cells_stay_absent_cells_stay_absent_and_temperature_0_is_greedy(name, settings):
    model = TabularAnyOrder(SPECS["strided"])
    cases = cases_of(model)
    for case, codes in zip(cases, sample(SAMPLERS[name](**settings), model, cases, 40)):
        fixed = case.codes != -2
        assert (codes[:, fixed] == case.codes[fixed]).all() and (codes[:, ~fixed] >= 0).all()
        if settings:
            assert (codes == codes[0]).all()
