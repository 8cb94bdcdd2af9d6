"""Guidance: the convention, the schedules, and wrappers that every sampler may use as if they were the
model."""

import math

import pytest
import torch
from kit import SPECS, TabularCausal, TabularMasked, batch_of, cases_of

from gentok.flow.guidance import SCHEDULES, combine, guidance_scale
from gentok.generators.base import Causal, Masked
from gentok.rng import RowRNG
from gentok.samplers.guided import GuidedCausal, GuidedMasked, guided
from gentok.types import Class, Condition, ConditionSpec, Tokens


def test_one_is_no_guidance_zero_is_unconditional_and_more_goes_beyond_the_condition():
    c, u = RowRNG([0, 1]).normal(5)
    assert torch.allclose(combine(c, u, 1.0), c)
    assert torch.equal(combine(c, u, 0.0), u)
    assert torch.allclose(combine(c, u, 3.0), u + 3 * (c - u))


def test_impossible_ids_stay_impossible_without_nan():
    inf = torch.inf
    c = torch.tensor([[0.0, -inf, 1.0, -inf]])
    u = torch.tensor([[1.0, -inf, -inf, 2.0]])
    for scale in (0.0, 0.5, 1.0, 4.0):
        out = combine(c, u, scale)
        assert not out.isnan().any()
        assert (out[0, 1:] == -inf).all()


def test_half_precision_is_combined_in_float32():
    c, u = torch.tensor([[10.0]]).bfloat16(), torch.tensor([[9.9375]]).bfloat16()
    assert combine(c, u, 7.3).dtype == torch.float32
    assert combine(c, u, 7.3).item() == pytest.approx(9.9375 + 7.3 * 0.0625)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "cosine:2.75", "cosine:0.5"])
def test_schedules_end_at_the_scale_and_vary_between_one_and_it(schedule):
    progress = torch.linspace(-0.5, 1.5, 41, dtype=torch.float64)
    g = guidance_scale(schedule, 4.0, progress)
    assert g[-1] == pytest.approx(4.0)
    assert ((g >= 1) & (g <= 4)).all()
    assert (g.diff() >= 0).all()
    assert guidance_scale(schedule, 1.0, progress).eq(1).all()
    assert guidance_scale(schedule, 4.0, torch.tensor(0.0)).item() == (4.0 if schedule == "constant" else 1.0)


def test_half_way_values():
    half, third = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1 / 3, dtype=torch.float64)
    assert guidance_scale("linear", 3.0, half).item() == pytest.approx(2.0)
    assert guidance_scale("cosine", 3.0, half).item() == pytest.approx(2.0)
    assert guidance_scale("cosine", 3.0, third).item() == pytest.approx(1 + 2 * (1 - math.cos(math.pi / 3)) / 2)
    assert guidance_scale("cosine:2", 3.0, half).item() == pytest.approx(1 + 2 * (1 - math.cos(math.pi / 4)) / 2)
    for other in ("cosine:0", "cosine:-1", "linear:2", "cosine:"):
        with pytest.raises(ValueError, match="guidance schedule"):
            guidance_scale(other, 3.0, half)


def test_the_wrapper_fits_the_capability_and_is_left_out_without_guidance():
    causal, masked = TabularCausal(SPECS["k2"], "delayed"), TabularMasked(SPECS["k2"])
    assert guided(causal, 1.0) is causal and guided(masked, 1.0, "cosine") is masked
    wrapped = guided(causal, 2.0)
    assert isinstance(wrapped, GuidedCausal) and isinstance(wrapped, Causal)
    assert (wrapped.layout, wrapped.spec, wrapped.condition_spec) == (causal.layout, causal.spec, causal.condition_spec)
    assert torch.equal(wrapped.begin, causal.begin) and wrapped.exact_slots
    assert isinstance(guided(masked, 2.0), GuidedMasked) and isinstance(guided(masked, 2.0), Masked)


def test_errors_say_what_to_do():
    model = TabularCausal(SPECS["k1"])
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        guided(model, 2.0, "quadratic")
    with pytest.raises(ValueError, match=">= 0"):
        guided(model, -1.0)
    model.condition_spec = ConditionSpec()
    with pytest.raises(ValueError, match="unconditional"):
        guided(model, 2.0)
    with pytest.raises(ValueError, match="Causal, Masked, CumulativeMasked, AnyOrder, Refines, NextScale, Entities and MaskedVectors"):
        guided(object(), 2.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cached_guided_logits_equal_one_pass_with_rows_at_different_steps_and_trees(schedule):
    """A chain fed in two calls, rows apart by one, and the same chain fed as a tree with a wrong branch, that
    commit forgets."""
    model = guided(TabularCausal(SPECS["k1"]), 2.5, schedule)
    condition = Condition({"class": Class(torch.tensor([0, 1, 0]))})
    fed = torch.cat([model.begin.expand(3, 1, 1), torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1]])[:, :, None]], 1)
    zero = torch.zeros(3, dtype=torch.int64)
    whole = model.logits(fed, model.init_cache(condition, 3, 4), zero)

    cache = model.init_cache(condition, 3, 6)
    model.logits(fed[:, :2], cache, zero)
    model.commit(cache, zero)
    at = torch.tensor([1, 2, 2])  # row 0 goes back by one
    rows = torch.arange(3)[:, None]
    later = model.logits(fed[rows, at[:, None] + torch.arange(2)], cache, at)
    assert torch.allclose(later, whole[rows, at[:, None] + torch.arange(2)])

    cache = model.init_cache(condition, 3, 6)
    model.logits(fed[:, :1], cache, zero)
    model.commit(cache, zero)
    wrong = (fed[:, 1:2] + 1) % 3
    tree = torch.cat([wrong, fed[:, 1:3]], 1)
    parents = torch.tensor([[-1, -1, 1]]).expand(3, 3)
    out = model.logits(tree, cache, zero + 1, parents)
    assert torch.allclose(out[:, 1:], whole[:, 1:3])
    assert not torch.allclose(out[:, 0], whole[:, 1])
    model.commit(cache, zero + 1, torch.tensor([[1, 2]]).expand(3, 2))
    assert torch.allclose(model.logits(fed[:, 3:4], cache, zero + 3), whole[:, 3:4])


def test_masked_guidance_follows_the_share_of_revealed_cells():
    model = TabularMasked(SPECS["k1"])
    _, condition, codes, lengths = batch_of(cases_of(model), 1)
    tokens = Tokens(codes, model.spec, lengths)
    wrapped = guided(model, 3.0, "linear")
    revealed = (codes >= 0).sum((1, 2)) / (codes != -1).sum((1, 2))
    assert torch.allclose(wrapped.progress(tokens), revealed.double())
    expected = combine(model.logits(tokens, condition), model.logits(tokens, condition.null()), (1 + 2 * revealed)[:, None, None, None])
    assert torch.allclose(wrapped.logits(tokens, condition), expected, equal_nan=True)
