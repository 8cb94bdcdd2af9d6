"""Samplers of any-order models: calls, rows that need none, what is reported on the way, and one-line errors."""

import pytest
import torch
from any_order_kit import TabularAnyOrder
from kit import SPECS, batch_of, cases_of

from gentok.rng import RowRNG
from gentok.samplers.any_order import AnyOrderSampler
from gentok.samplers.any_subset import AnySubset
from gentok.samplers.draws import draw
from gentok.samplers.guided import guided
from gentok.samplers.speculation import residual
from gentok.types import UNKNOWN, Class, Condition, Line, Tokens, TokenSpec

BOTH = [AnyOrderSampler(), AnySubset()]


def go(sampler, model, n=20, seed=0, **options):
    which, condition, codes, lengths = batch_of(cases_of(model), n)
    rng = RowRNG.of(seed, torch.arange(len(which)))
    known = Tokens(codes, model.spec)
    return sampler(model, condition, rng=rng, known=known, lengths=lengths, **options), (codes == UNKNOWN).sum((1, 2))


def test_one_cell_per_call_takes_as_many_calls_as_cells():
    model = TabularAnyOrder(SPECS["strided"])
    for sampler in (AnyOrderSampler(), AnySubset(k=1)):
        out, masked_cells = go(sampler, model)
        assert torch.equal(out.calls, masked_cells)
        assert out.network_calls["generator"] == (int(masked_cells.max()), int(masked_cells.sum()) * 8)
    assert go(AnyOrderSampler(), guided(model, 2.0))[0].network_calls["generator"][1] == int(masked_cells.sum()) * 16


def test_k_1_is_the_sequential_sampler_draw_for_draw():
    model = TabularAnyOrder(SPECS["k2"])
    assert torch.equal(go(AnySubset(k=1), model)[0].tokens.codes, go(AnyOrderSampler(), model)[0].tokens.codes)


def test_drafts_that_are_always_right_are_all_accepted():
    """Independent cells: a draft is as good as its oracle, and k cells and one more come from two calls."""

    class Independent(TabularAnyOrder):
        def logits(self, tokens, condition, rank, seen=None):
            return super().logits(Tokens(torch.full_like(tokens.codes, UNKNOWN), tokens.spec), condition, rank, None)

    model = Independent(TokenSpec((3,), Line(12)))
    condition = Condition({"class": Class(torch.zeros(50, dtype=torch.int64))})
    out = AnySubset(k=3)(model, condition, rng=RowRNG.of(0, range(50)))
    assert (out.calls == 6).all() and out.stats == {"drafts": 300, "accepted": 300}


def test_drafts_that_are_never_right_cost_no_more_than_one_call_per_cell():
    """The oracle forbids what the draft says, and the other way round."""

    class Contrary(TabularAnyOrder):
        def logits(self, tokens, condition, rank, seen=None):
            blind = (
                rank > (torch.arange(2) if seen is None else seen)[0] + 1 if seen is not None else torch.zeros_like(rank, dtype=torch.bool)
            )
            even = torch.arange(4) % 2 == 0
            out = torch.where(blind[..., None], torch.where(even, 0.0, -torch.inf), torch.where(even, -torch.inf, 0.0))
            return out.to(torch.float64)

    model = Contrary(TokenSpec((4,), Line(7)))
    condition = Condition({"class": Class(torch.zeros(30, dtype=torch.int64))})
    out = AnySubset(k=4)(model, condition, rng=RowRNG.of(0, range(30)))
    assert (out.calls == 7).all() and out.stats["accepted"] == 0 and (out.tokens.codes % 2 == 1).all()


@pytest.mark.parametrize("sampler", BOTH)
def test_nothing_to_draw_needs_no_call_and_a_seed_decides_all(sampler):
    model = TabularAnyOrder(SPECS["k1"])
    known = Tokens(torch.zeros(2, 1, 4, dtype=torch.int64), model.spec)
    out = sampler(model, Condition({"class": Class(torch.tensor([0, 1]))}), rng=RowRNG([0, 1]), known=known)
    assert out.calls.tolist() == [0, 0] and out.network_calls == {} and torch.equal(out.tokens.codes, known.codes)
    first, again, other = (go(sampler, model, seed=seed)[0].tokens.codes for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("sampler", BOTH)
def test_what_is_reported_on_the_way_never_changes_again(sampler):
    reported = []
    out, _ = go(sampler, TabularAnyOrder(SPECS["k2"]), on_step=lambda tokens, step, steps: reported.append(tokens.codes.clone()))
    for before, after in zip(reported, reported[1:] + [out.tokens.codes]):
        assert (before[before != UNKNOWN] == after[before != UNKNOWN]).all()
        assert (after == UNKNOWN).sum() < (before == UNKNOWN).sum() or torch.equal(before, out.tokens.codes)
    assert torch.equal(reported[-1], out.tokens.codes)


def test_a_residual_without_mass_is_the_distribution_itself():
    p = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.5, 0.25]], dtype=torch.float64)
    assert torch.allclose(residual(p, q).softmax(1), torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    assert draw(residual(p, q), RowRNG([0, 1]))[1] == 0


@pytest.mark.parametrize("make, words", [
    (lambda: AnySubset(k=0), "k=0: expected a number above 0"),
    (lambda: AnySubset(order="raster"), "left_to_right, random"),
    (lambda: AnyOrderSampler(order="raster"), "left_to_right, random"),
    (lambda: go(AnySubset(), TabularAnyOrder(SPECS["k1"]), draft=Tokens.unknown(SPECS["k1"], 2)), "does not start from a draft"),
    (lambda: AnySubset()(TabularAnyOrder(SPECS["k1"]), Condition(), rng=RowRNG([0]), lengths=torch.tensor([9])), "0..4 positions"),
])  # fmt: skip
def test_mistakes_are_one_line_errors(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
