"""Plain autoregressive sampling draws the enumerated distribution of its filtered, guided model, and near
misses of it are noticed."""

import itertools

import pytest
import torch
from kit import (
    COMMON,
    LAYOUTS,
    SPECS,
    TabularCausal,
    agreement,
    alone,
    altered,
    cases_of,
    causal_distribution,
    checkered,
    rejects,
    sample,
)  # fmt: skip
from scipy import stats

from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.draws import draw, exponential_race
from gentok.samplers.guided import GuidedCausal, guided
from gentok.types import ABSENT, UNKNOWN, Tokens

SETTINGS = {
    **COMMON,
    "linear guidance, top-p, min-p": ({"top_p": 0.8, "min_p": 0.1}, (2.0, "linear")),
    "cosine guidance, typical": ({"typical": 0.8, "temperature": 0.7}, (3.0, "cosine")),
}
GRID = [(spec, layout) for spec in SPECS for layout in LAYOUTS[spec]]


def run(model, setting, n=4000, seed=1, **options):
    arguments, guidance = SETTINGS[setting]
    sampler, cases = AutoregressiveSampler(**arguments), cases_of(model)
    distributions = [causal_distribution(model, case, sampler, guidance) for case in cases]
    return sample(sampler, guided(model, *guidance), cases, n, seed, **options), distributions


@checkered(most=6, order=["-".join(pair) for pair in GRID], setting=SETTINGS)
def test_every_layout_and_filter_draws_the_enumerated_distribution(order, setting):
    spec, layout = order.split("-")
    assert agreement(*run(TabularCausal(SPECS[spec], layout), setting, n=1500)) > 1e-3


def test_a_race_of_exponentials_draws_the_same_distribution():
    assert agreement(*run(TabularCausal(SPECS["k2"], "delayed"), "temperature 0.7", choose=exponential_race)) > 1e-3


@pytest.mark.slow
def test_p_values_of_exact_draws_are_uniform():
    """The verdict itself is calibrated: neither blind nor nervous."""
    model = TabularCausal(SPECS["k2"], "delayed")
    values = [agreement(*run(model, "plain", 2000, seed)) for seed in range(200)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


# ----------------------------------------------------------------------------------------------------------------- mutants


def mutant(model, setting, sampler=None, generator=None, n=8000, **options):
    """Samples of a mutated sampler or generator, and the distributions that it should have drawn from."""
    arguments, guidance = SETTINGS[setting]
    right, cases = AutoregressiveSampler(**arguments), cases_of(model)
    distributions = [causal_distribution(model, case, right, guidance) for case in cases]
    return sample(sampler or right, generator or guided(model, *guidance), cases, n, seed=2, **options), distributions


def test_mutant_temperature_slightly_off():
    model = TabularCausal(SPECS["k1"])
    assert rejects(*mutant(model, "temperature 0.7", sampler=AutoregressiveSampler(temperature=0.77)))


@pytest.mark.slow
def test_mutant_that_forgets_the_temperature_in_the_last_step():
    model = TabularCausal(SPECS["k2"], "level_major")

    def undo(logits, ids, cache, at):
        last = at[:, None] + torch.arange(ids.shape[1]) == model.layout.steps - 1
        return torch.where(last[:, :, None, None], logits * 0.7, logits)

    assert rejects(*mutant(model, "temperature 0.7", generator=altered(model, undo)))


@pytest.mark.slow
def test_mutant_that_forgets_top_k_in_its_last_call():
    class Forgetful(AutoregressiveSampler):
        calls = itertools.count(1)

        def filter(self, logits):
            return logits.double() if next(self.calls) == 4 else super().filter(logits)

    assert rejects(*mutant(TabularCausal(SPECS["k1"]), "top-k 2", sampler=Forgetful(top_k=2)))


@pytest.mark.slow
def test_mutant_guidance_slightly_off():
    model = TabularCausal(SPECS["k1"])
    assert rejects(*mutant(model, "guidance 2", generator=guided(model, 1.85)))


@pytest.mark.slow
def test_mutant_guidance_schedule_one_step_late():
    class Late(GuidedCausal):
        def progress(self, ids, at, parents=None):
            return super().progress(ids, (at - 1).clamp(min=0), parents)

    model = TabularCausal(SPECS["strided"], "position_major")
    assert rejects(*mutant(model, "linear guidance, top-p, min-p", generator=Late(model, 2.0, "linear")))


@pytest.mark.slow
def test_mutant_that_filters_before_it_guides():
    model = TabularCausal(SPECS["k1"], scale=0.7)

    def cut(logits, *_):
        return AutoregressiveSampler(typical=0.9).filter(logits)

    right = AutoregressiveSampler(typical=0.9)
    cases = cases_of(model)
    distributions = [causal_distribution(model, case, right, (1.3, "constant")) for case in cases]
    assert agreement(sample(right, guided(model, 1.3), cases, 8000), distributions) > 1e-3
    assert rejects(sample(AutoregressiveSampler(), guided(altered(model, cut), 1.3), cases, 8000), distributions)


@pytest.mark.slow
def test_mutant_that_draws_a_known_cell_anew_and_writes_it_back_afterwards():
    class Redraw(AutoregressiveSampler):
        def __call__(self, model, condition, *, known=None, **options):
            codes = known.codes.clone()
            first = codes[:, 0, 0].clone()
            codes[:, 0, 0] = torch.where(first >= 0, torch.full_like(first, UNKNOWN), first)
            out = super().__call__(model, condition, known=Tokens(codes, known.spec), **options)
            out.tokens.codes[:, 0, 0] = torch.where(first >= 0, first, out.tokens.codes[:, 0, 0])
            return out

    model = TabularCausal(SPECS["k1"], scale=0.4)
    assert rejects(*mutant(model, "plain", sampler=Redraw(forced=True)))


@pytest.mark.slow
def test_mutant_that_draws_short_rows_at_full_length_and_cuts_them():
    class Cuts(AutoregressiveSampler):
        def __call__(self, model, condition, *, known=None, lengths=None, **options):
            beyond = known.codes == ABSENT
            full = torch.where(beyond & model.spec.exists(), UNKNOWN, known.codes)
            out = super().__call__(model, condition, known=Tokens(full, known.spec), **options)
            out.tokens.codes.masked_fill_(beyond, ABSENT)
            return out

    model = TabularCausal(SPECS["k2"], "level_major", scale=0.25)
    assert rejects(*mutant(model, "plain", sampler=Cuts(forced=True)))


@pytest.mark.slow
def test_mutant_that_reads_the_first_slot_twice():
    model = TabularCausal(SPECS["strided"], "parallel", scale=0.2)

    def swap(logits, ids, cache, at):
        first, second = logits[:, :, :1, :2], logits[:, :, 1:, :2]
        second.copy_(torch.where(first.isfinite(), first, second))
        return logits

    assert rejects(*mutant(model, "plain", generator=altered(model, swap)))


def test_mutant_that_takes_the_same_random_numbers_in_every_call():
    """Every conditional is right, the joint is not."""
    model = TabularCausal(SPECS["k1"])
    assert rejects(*mutant(model, "plain", choose=lambda logits, rng: draw(logits, RowRNG(torch.arange(len(logits))))))


# -------------------------------------------------------------------------------------------------------------- rows alone


@pytest.mark.parametrize("setting", ["plain", "linear guidance, top-p, min-p"])
@pytest.mark.parametrize(("spec", "layout"), [("k1", "raster"), ("k2", "delayed"), ("strided", "level_major")])
def test_a_row_of_a_batch_equals_that_row_alone(spec, layout, setting):
    arguments, guidance = SETTINGS[setting]
    model = TabularCausal(SPECS[spec], layout)
    together, by_itself = alone(AutoregressiveSampler(**arguments), guided(model, *guidance), cases_of(model), n=8)
    assert (together == by_itself).all()


def test_rows_that_share_a_stream_do_not_equal_themselves_alone():
    """The check can fail: here every draw takes its numbers in the order of the batch."""
    model, shared = TabularCausal(SPECS["k1"]), RowRNG([5])

    class Shares(AutoregressiveSampler):
        def _draw(self, request, logits, here, active, last):
            u = shared.uniform(*logits.shape[:2])[0]
            return (logits.softmax(-1).cumsum(-1) < u[..., None]).sum(-1).clamp(max=2)

    together, by_itself = alone(Shares(), model, cases_of(model), n=8)
    assert (together != by_itself).any()
