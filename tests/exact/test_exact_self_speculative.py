"""Self-speculative decoding draws the enumerated distribution of its windows, whatever was accepted on the
way; near misses are noticed."""

import pytest
import torch
from kit import COMMON, SPECS, agreement, alone, batch_of, cases_of, checkered, rejects, sample
from self_speculative_kit import Tabular, window_distribution
from test_exact_networks import network

from gentok.generators.self_speculative import SelfSpeculativeTransformer
from gentok.rng import RowRNG
from gentok.samplers import self_speculative
from gentok.samplers.guided import guided
from gentok.samplers.self_speculative import SelfSpeculativeSampler
from gentok.types import UNKNOWN, Tokens

SETTINGS = {
    **COMMON,
    "linear guidance, top-p": ({"top_p": 0.8}, (2.0, "linear")),
}


def run(model, setting, n=3000, seed=1, **options):
    arguments, guidance = SETTINGS[setting]
    sampler, cases = SelfSpeculativeSampler(**arguments, **options), cases_of(model)
    return sample(sampler, guided(model, *guidance), cases, n, seed), [
        window_distribution(model, case, sampler, guidance) for case in cases
    ]


@checkered(window=[2, 3, 8], setting=SETTINGS)
def test_every_window_and_filter_draws_the_enumerated_distribution(window, setting):
    assert agreement(*run(Tabular(SPECS["k1"]), setting, window=window)) > 1e-3


@pytest.mark.parametrize("spec", ["k2", "strided"])
def test_levels_and_missing_cells_draw_the_enumerated_distribution(spec):
    model = Tabular(SPECS[spec])
    cases = [case for case in cases_of(model) if int((case.codes == UNKNOWN).sum()) <= 4]
    assert len(cases) >= 2
    sampler = SelfSpeculativeSampler(window=3, temperature=0.8)
    assert agreement(sample(sampler, model, cases, 3000), [window_distribution(model, case, sampler) for case in cases]) > 1e-3


@pytest.mark.parametrize("setting", ["plain", "guidance 2"])
def test_a_network_draws_its_enumerated_distribution(setting):
    assert agreement(*run(network(SelfSpeculativeTransformer, "k1"), setting, n=600, window=3)) > 1e-3


# ----------------------------------------------------------------------------------------------------------------- mutants


def mutant(sampler, scale=0.5, n=10_000):
    model = Tabular(SPECS["k1"], scale)
    cases = cases_of(model)
    return sample(sampler, model, cases, n, seed=2), [window_distribution(model, case, sampler) for case in cases]


def test_mutant_that_draws_from_p_and_not_from_the_residual(monkeypatch):
    monkeypatch.setattr(self_speculative, "residual", lambda p, q: p.log())
    assert rejects(*mutant(SelfSpeculativeSampler(window=4)))


class Accepting(SelfSpeculativeSampler):
    def _accept(self, p, q, guesses, sure, size, rng):
        return super()._accept(*self.other(p, q), guesses, sure, size, rng)


def test_mutant_that_accepts_every_draft():
    class Every(Accepting):
        def other(self, p, q):
            return torch.ones_like(p), q

    assert rejects(*mutant(Every(window=4), 0.2))


def test_mutant_that_accepts_by_the_inverse_ratio():
    class Inverse(Accepting):
        def other(self, p, q):
            return q, p

    assert rejects(*mutant(Inverse(window=4), 0.2))


def test_mutant_that_forgets_which_distribution_a_draft_came_from():
    class Forgets(SelfSpeculativeSampler):
        def _accept(self, p, q, guesses, sure, size, rng):
            return super()._accept(p, q.sqrt() / q.sqrt().sum(-1, keepdim=True), guesses, sure, size, rng)

    assert rejects(*mutant(Forgets(window=4)))


def test_mutant_that_keeps_the_rejected_draft():
    class Keeps(SelfSpeculativeSampler):
        def _accept(self, p, q, guesses, sure, size, rng):
            kept = super()._accept(p, q, guesses, sure, size, rng)
            return torch.where(kept < size, kept + 1, kept)

    assert rejects(*mutant(Keeps(window=4), 0.3))


def test_mutant_whose_window_is_one_cell_longer():
    model, right = Tabular(SPECS["k1"], 0.3), SelfSpeculativeSampler(window=2)
    cases = cases_of(model)
    distributions = [window_distribution(model, case, right) for case in cases]
    assert agreement(sample(right, model, cases, 10_000), distributions) > 1e-3
    assert rejects(sample(SelfSpeculativeSampler(window=3), model, cases, 10_000), distributions)


# ----------------------------------------------------------------------------------------------------------- rows and calls


@pytest.mark.parametrize("spec", SPECS)
def test_a_row_of_a_batch_equals_that_row_alone_and_keeps_what_is_known(spec):
    model = Tabular(SPECS[spec])
    cases = cases_of(model)
    sampler = SelfSpeculativeSampler(window=3, top_p=0.9)
    together, by_itself = alone(sampler, guided(model, 2.0, "linear"), cases, n=8)
    assert (together == by_itself).all()
    for case, codes in zip(cases, sample(SelfSpeculativeSampler(temperature=0.0), model, cases, 20)):
        fixed = case.codes != UNKNOWN
        assert (codes[:, fixed] == case.codes[fixed]).all() and (codes[:, ~fixed] >= 0).all()


@pytest.mark.parametrize("window", [1, 2, 8])
def test_passes_never_outnumber_cells_and_nothing_unknown_needs_none(window):
    model = Tabular(SPECS["k1"])
    _, condition, codes, lengths = batch_of(cases_of(model), 30)
    codes[:30] = codes[:30].clamp(min=-1).masked_fill(codes[:30] == UNKNOWN, 0)
    out = SelfSpeculativeSampler(window=window)(
        model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths
    )
    masked_cells = (codes == UNKNOWN).sum((1, 2))
    assert (out.calls <= masked_cells).all() and (out.calls[masked_cells == 0] == 0).all()
    assert out.network_calls["trunk"][0] >= -(-int(masked_cells.max()) // window)
    assert window > 1 or ("verify" not in out.network_calls and torch.equal(out.calls, masked_cells))


def test_a_window_of_none_is_refused():
    with pytest.raises(ValueError, match="window=0: expected a number above 0"):
        SelfSpeculativeSampler(window=0)
