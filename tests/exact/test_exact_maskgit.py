"""MaskGIT against the distribution of a model with exact conditionals: how far it is, where it is exact, and
what it must never do."""

import pytest
import torch
from distances import RIG, measure
from kit import SPECS, TabularMasked, agreement, alone, batch_of, cases_of, checkered, distance, floor, masked_distribution, rejects, sample

from gentok.rng import RowRNG
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.types import Tokens

RANDOM_ORDER = {"steps": 8, "schedule": "linear", "choice_temperature": 1e9}


@pytest.mark.parametrize("spec", ["k1", "k2", "strided"])
def test_one_cell_per_step_in_random_order_is_exact(spec):
    """Where chance alone chooses the cells, nothing is left of the approximation: draws, masked cells and
    counts are right in every row."""
    model = TabularMasked(SPECS[spec])
    cases = cases_of(model)
    samples = sample(MaskGIT(**RANDOM_ORDER), model, cases, 2500)
    assert agreement(samples, [masked_distribution(model, case) for case in cases]) > 1e-3


def test_two_cells_per_step_in_random_order_are_not():
    model = TabularMasked(SPECS["k1"], scale=0.7)
    cases = cases_of(model)
    distributions = [masked_distribution(model, case) for case in cases]
    assert rejects(sample(MaskGIT(**{**RANDOM_ORDER, "steps": 2}), model, cases, 8000), distributions)


def test_confidence_order_is_far_from_the_distribution_and_its_distance_is_measured():
    names = ("autoregressive", "maskgit, one cell per call, most confident first", "maskgit, one cell per call, random order")
    rows = {row.name: row for row in measure(4000, only=names)}
    assert rows["autoregressive"].distance < 2 * rows["autoregressive"].floor
    confident = rows["maskgit, one cell per call, most confident first"]
    assert 0.2 < confident.distance < 0.7
    assert rows["maskgit, one cell per call, random order"].distance < 2 * rows["autoregressive"].floor


def test_the_rig_has_room_for_a_distance():
    distributions = [masked_distribution(RIG, cases_of(RIG)[0])]
    assert floor(distributions, 4000) < 0.05
    assert distance([distributions[0].outcomes], distributions) > 0.3  # the uniform distribution is far away


@pytest.mark.parametrize("settings", [{}, {"steps": 3}, {"temperature": 0.0}, {"top_k": 1, "choice_temperature": 0.0}, {"steps": 100}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_known_cells_stay_and_absent_cells_stay_absent(settings, scale):
    model = TabularMasked(SPECS["strided"])
    cases = cases_of(model)
    for case, codes in zip(cases, sample(MaskGIT(**settings), guided(model, scale, "cosine"), cases, 50)):
        fixed = case.codes != -2
        assert (codes[:, fixed] == case.codes[fixed]).all()
        assert (codes[:, ~fixed] >= 0).all()


@checkered(settings=[{}, {"steps": 3, "top_k": 2}, {"steps": 100, "temperature": 0.7}], spec=["k1", "strided"])
def test_a_row_of_a_batch_equals_that_row_alone(spec, settings):
    model = TabularMasked(SPECS[spec])
    together, by_itself = alone(MaskGIT(**settings), guided(model, 2.0, "linear"), cases_of(model), n=8)
    assert (together == by_itself).all()


def test_each_row_counts_its_own_masked_cells_and_calls():
    model = TabularMasked(SPECS["k1"])
    cases = cases_of(model)
    which, condition, codes, lengths = batch_of(cases, 3)
    out = MaskGIT(steps=50)(model, condition, rng=RowRNG.of(0, torch.arange(len(which))), known=Tokens(codes, model.spec), lengths=lengths)
    masked_cells = (codes == -2).sum((1, 2))
    assert (out.calls == masked_cells).all()
    calls, positions = out.network_calls["generator"]
    assert calls == int(masked_cells.max())
    assert positions == int(masked_cells.sum()) * codes[0].numel()
