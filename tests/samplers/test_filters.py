"""The distributions of the filters: what they keep, how much of it, and that order and ties do not matter
where they should not."""

import math

import numpy as np
import pytest
import torch
from kit import reference_filter

from gentok.rng import RowRNG
from gentok.samplers import filters
from gentok.samplers.autoregressive import AutoregressiveSampler

EACH = {
    "temperature": (filters.temperature, 0.7),
    "greedy": (filters.temperature, 0.0),
    "top_k": (filters.top_k, 3),
    "top_p": (filters.top_p, 0.6),
    "min_p": (filters.min_p, 0.3),
    "typical": (filters.typical, 0.6),
}


def logits(rows=200, vocab=9, seed=0, scale=2.0):
    return RowRNG(torch.arange(rows) + 1000 * seed).normal(vocab) * scale


def kept(x):
    return x > -torch.inf


@pytest.mark.parametrize("name", EACH)
def test_never_nan_never_empty_and_impossible_stays_impossible(name):
    function, value = EACH[name]
    x = logits()
    x[RowRNG(torch.arange(200)).uniform(9) < 0.4] = -torch.inf
    x[:, 0] = torch.where((x == -torch.inf).all(1), 0.0, x[:, 0])
    x = torch.cat(
        [x, torch.full((1, 9), -torch.inf), torch.tensor([[-torch.inf] * 8 + [3.0]]), torch.full((1, 9), 1e300, dtype=torch.float64)]
    )
    before = x.clone()
    out = function(x, value)
    assert out.dtype == torch.float64
    assert not out.isnan().any()
    assert (x == before).all(), "a filter must not write into its input"
    assert not kept(out)[~kept(x)].any()
    assert (kept(out).any(1) == kept(x).any(1)).all()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_floating_dtype_and_any_leading_axes(name, dtype):
    function, value = EACH[name]
    x = logits().to(dtype)
    assert torch.equal(function(x.view(10, 4, 5, 9), value).view(200, 9), function(x.double(), value))


@pytest.mark.parametrize("name", EACH)
def test_permutation_equivariance(name):
    function, value = EACH[name]
    x, order = logits(), RowRNG([7]).permutation(9)[0]
    assert torch.allclose(function(x[:, order], value), function(x, value)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocab", [5, 10, 16, 37])
@pytest.mark.parametrize("mass", [0.05, 0.3, 0.5, 0.7, 0.9, 0.95])
@pytest.mark.parametrize("name", ["top_p", "typical"])
def test_a_uniform_distribution_keeps_the_ceiling_of_its_share(name, mass, vocab):
    for height in (0.0, -3.7, 123.4):
        out = EACH[name][0](torch.full((1, vocab), height, dtype=torch.float64), mass)
        assert int(kept(out).sum()) == math.ceil(round(mass * vocab, 9))
        assert kept(out)[0, : int(kept(out).sum())].all(), "among equals the lower id wins"


def test_top_k_keeps_exactly_k_of_equals_and_the_largest_of_others():
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0], [5.0, 1.0, 2.0, 2.0], [-torch.inf, -torch.inf, 0.0, -torch.inf]])
    assert kept(filters.top_k(x, 2)).tolist() == [
        [True, True, False, False], [False, True, True, False], [True, False, True, False], [False, False, True, False],
    ]  # fmt: skip
    assert (kept(filters.top_k(logits(), 4)).sum(1) == 4).all()
    assert torch.equal(filters.top_k(logits(), 100), logits())


def test_top_p_keeps_the_smallest_set_of_at_least_that_mass():
    x = logits()
    p, keeps = x.softmax(1), kept(filters.top_p(x, 0.6))
    mass = (p * keeps).sum(1)
    assert (mass >= 0.6 - 1e-9).all()
    assert (mass - torch.where(keeps, p, 2.0).amin(1) < 0.6).all(), "without its least id it would fall short"
    assert (torch.where(keeps, p, 2.0).amin(1) > torch.where(keeps, -1.0, p).amax(1)).all(), "the most probable ids"


def test_typical_may_leave_out_the_most_probable_id():
    p = torch.tensor([[0.3] + [0.07] * 10])
    keeps = kept(filters.typical(p.log(), 0.3))
    assert not keeps[0, 0]
    assert int(keeps.sum()) == 5


def test_temperature_is_a_power_of_the_distribution_and_zero_is_the_first_of_the_most_probable():
    x = logits()
    expected = x.softmax(1) ** (1 / 0.7)
    assert torch.allclose(filters.temperature(x, 0.7).softmax(1), expected / expected.sum(1, keepdim=True))
    assert filters.temperature(torch.tensor([[0.0, 3.0, 3.0]]), 0.0).softmax(1).tolist() == [[0.0, 1.0, 0.0]]
    assert filters.temperature(torch.tensor([[0.0, 3.0, 2.0]]), 1e-300).softmax(1).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "min_p": 0.1, "typical": 0.9},
        {"temperature": 1.5, "top_p": 0.9, "typical": 0.5},
        {"top_k": 2, "min_p": 0.5},
        {"temperature": 0.0, "top_p": 0.5},
    ],
)
def test_the_composition_agrees_with_one_id_at_a_time_in_plain_numpy(settings):
    x = logits(rows=100)
    sampler = AutoregressiveSampler(**settings)
    reference = np.stack([reference_filter(row, sampler) for row in x.numpy()])
    assert np.allclose(sampler.filter(x).softmax(1).numpy(), reference, atol=1e-12)


def test_the_order_of_composition_matters_and_is_the_documented_one():
    x = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    assert kept(filters.apply(x, top_k=2, top_p=0.55)).sum() == 1  # top-k first leaves 4/7, which is enough
    assert kept(filters.top_k(filters.top_p(x, 0.55), 2)).sum() == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: expected"),
        ({"top_k": 0}, "top_k=0: expected"),
        ({"top_p": 0.0}, "top_p=0.0: expected"),
        ({"min_p": 1.5}, "min_p=1.5: expected"),
        ({"typical": 1.5}, "typical=1.5: expected"),
    ],
)
def test_a_value_out_of_range_stops_the_sampler_when_it_is_built(setting, words):
    with pytest.raises(ValueError, match=words):
        AutoregressiveSampler(**setting)
