"""What every sampler of Masked models keeps: known cells, absent cells, rows apart, seeds, and a line for
what does not fit."""

import pytest
import torch
from kit import CLASSES, SPECS, TabularMasked, alone, batch_of, cases_of, checkered, sample

from gentok.generators.base import Masked
from gentok.generators.masked import MaskedTransformer
from gentok.rng import RowRNG
from gentok.samplers.ancestral import Ancestral
from gentok.samplers.base import every_sampler, sampler_name
from gentok.samplers.confidence_threshold import ConfidenceThreshold, count_by_factor
from gentok.samplers.corrector import Corrector
from gentok.samplers.draws import exponential_race
from gentok.samplers.entropy_bounded import EntropyBounded, entropies, uncertainty
from gentok.samplers.first_hitting import FirstHitting
from gentok.samplers.guided import guided
from gentok.samplers.halton import Halton, halton_points, radical_inverse
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.remasking import Remasking
from gentok.samplers.soundstorm import SoundStorm
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Frames, Line, Pyramid, Raster, Tokens, TokenSpec

VARIANTS = [
    FirstHitting(),
    FirstHitting(cells_per_call=3, order=2),
    Ancestral(steps=4),
    Ancestral(steps=5, schedule="cosine", cache=False),
    Halton(steps=3),
    Halton(steps=50, roll=False),
    EntropyBounded(gamma=0.6),
    EntropyBounded(gamma=0.0, order="margin"),
    ConfidenceThreshold(threshold=0.6),
    ConfidenceThreshold(rule="factor", factor=1.4, block=2),
    Remasking(steps=5, eta=0.5),
    Remasking(strategy="rescale", eta=0.7, steps=6, schedule="cosine"),
    Remasking(strategy="conf", steps=8),
    Remasking(strategy="loop", eta=0.5, steps=9),
    Remasking(strategy="forward_backward", steps=5),
    Corrector(steps=3, cells=2, start=2),
    Corrector(steps=2, cells=3, parallel=False),
    MaskGIT(steps=3),
    SoundStorm(steps=3, later_steps=2),
]
SHORT = [pytest.param(s, id=f"{sampler_name(type(s))}-{i}") for i, s in enumerate(VARIANTS)]


def network(spec="k2", **settings):
    model = MaskedTransformer(SPECS[spec], CLASSES, width=16, depth=1, heads=2, **settings).double().eval().requires_grad_(False)
    for i, parameter in enumerate(model.parameters()):
        if parameter.dim() > 1:
            parameter.copy_(RowRNG([i]).normal(*parameter.shape)[0] * 0.35)
    return model


def altered(sampler, **changes):
    import dataclasses

    return dataclasses.replace(sampler, **changes)


def test_every_sampler_of_masked_models_is_here():
    assert {type(s) for s in VARIANTS} == {s for s in every_sampler() if s.requires is Masked}


@pytest.mark.parametrize("sampler", SHORT)
@pytest.mark.parametrize("change", [{}, {"temperature": 0.0}, {"top_k": 1}])
def test_known_cells_stay_absent_cells_stay_absent_and_masked_cells_are_filled(sampler, change):
    model = TabularMasked(SPECS["strided"])
    cases = cases_of(model)
    for case, codes in zip(cases, sample(altered(sampler, **change), guided(model, 1.5, "cosine"), cases, 20)):
        fixed = case.codes != UNKNOWN
        assert (codes[:, fixed] == case.codes[fixed]).all()
        assert (codes[:, ~fixed] >= 0).all()


@checkered(which=range(len(VARIANTS)), uses_time=[False, True])
def test_a_row_of_a_batch_equals_that_row_alone(which, uses_time):
    model = network(uses_time=uses_time)
    together, by_itself = alone(VARIANTS[which], guided(model, 2.0, "linear"), cases_of(model), n=4)
    assert (together == by_itself).all()


@pytest.mark.parametrize("sampler", SHORT)
def test_nothing_to_draw_costs_nothing_and_a_batch_of_both_draws_what_is_missing(sampler):
    model = TabularMasked(SPECS["k1"])
    full = Tokens(torch.ones(2, 1, 4, dtype=torch.int64), model.spec)
    condition = Condition({"class": Class(torch.tensor([0, 1]))})
    out = sampler(model, condition, rng=RowRNG([0, 1]), known=full)
    assert torch.equal(out.tokens.codes, full.codes) and out.calls.tolist() == [0, 0] and out.network_calls == {}
    some = full.codes.clone()
    some[1, 0, 2:] = UNKNOWN
    out = sampler(model, condition, rng=RowRNG([0, 1]), known=Tokens(some, model.spec))
    assert torch.equal(out.tokens.codes[:, 0, :2], full.codes[:, 0, :2]) and out.calls[0] == 0 and out.calls[1] > 0
    nothing = sampler(model, condition, rng=RowRNG([0, 1]), lengths=torch.tensor([0, 0]))
    assert (nothing.tokens.codes == ABSENT).all() and nothing.network_calls == {}


@pytest.mark.parametrize("sampler", SHORT)
def test_calls_are_counted_by_row_and_by_position_and_steps_are_reported(sampler):
    model = TabularMasked(SPECS["k1"])
    which, condition, codes, lengths = batch_of(cases_of(model), 4)
    given = {"known": Tokens(codes, model.spec), "lengths": lengths}
    seen = []
    out = sampler(model, condition, rng=RowRNG.of(0, range(len(which))), on_step=lambda *step: seen.append(step), **given)
    calls, positions = out.network_calls["generator"]
    if not (isinstance(sampler, MaskGIT)):
        assert positions == int(out.calls.sum()) * codes[0].numel()
    assert int(out.calls.max()) <= calls and seen
    assert all(number <= of for _, number, of in seen) and seen[-1][1] == seen[-1][2] and torch.equal(seen[-1][0].codes, out.tokens.codes)
    assert [number for _, number, _ in seen] == sorted({number for _, number, _ in seen})
    for tokens, *_ in seen:
        assert (tokens.codes[codes >= 0] == codes[codes >= 0]).all()


@pytest.mark.parametrize("sampler", SHORT)
def test_a_seed_gives_the_same_items_and_another_gives_others(sampler):
    model = TabularMasked(SPECS["k1"])
    cases = cases_of(model)
    first, again, other = (torch.cat(sample(sampler, model, cases, 30, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("sampler", SHORT)
def test_temperature_zero_takes_the_most_probable_ids_where_cells_are_independent(sampler):
    class Independent(TabularMasked):
        def logits(self, tokens, condition, t=None):
            return torch.log_softmax(RowRNG([3]).normal(1, 4, 3), -1).expand(len(tokens.codes), -1, -1, -1)

    model = Independent(SPECS["k1"])
    best = model.logits(Tokens.unknown(model.spec, 1), Condition()).argmax(-1)[0]
    for case, codes in zip(cases_of(model), sample(altered(sampler, temperature=0.0), model, cases_of(model), 10)):
        masked_cells = case.codes == UNKNOWN
        assert (codes[:, masked_cells] == best[masked_cells]).all()


@pytest.mark.parametrize("sampler", SHORT)
def test_a_choice_takes_the_place_of_the_draw(sampler):
    model = TabularMasked(SPECS["k1"])
    condition = Condition({"class": Class(torch.zeros(3, dtype=torch.int64))})
    out = sampler(model, condition, rng=RowRNG([0, 1, 2]), choose=lambda logits, rng: torch.full(logits.shape[:-1], 2))
    assert (out.tokens.codes == 2).all()
    assert sampler(model, condition, rng=RowRNG([0, 1, 2]), choose=exponential_race).tokens.present.all()


@pytest.mark.parametrize("sampler", SHORT)
@pytest.mark.parametrize(
    ("known", "words"),
    [
        (Tokens(torch.full((1, 1, 4), UNKNOWN), SPECS["k1"]), r"\[B, K, N\] = \[2, 1, 4\]"),
        (Tokens(torch.full((2, 1, 3), UNKNOWN), SPECS["k1"]), r"got \[2, 1, 3\]"),
        (Tokens(torch.full((2, 1, 4), UNKNOWN), TokenSpec((3,), Raster(2, 2))), "raster"),
        (Tokens(torch.full((2, 1, 4), 3), SPECS["k1"]), "ids 0..2"),
    ],
)
def test_known_tokens_of_another_shape_spec_or_vocabulary_are_refused_in_one_line(sampler, known, words):
    with pytest.raises(ValueError, match=words) as error:
        sampler(TabularMasked(SPECS["k1"]), Condition({"class": Class(torch.tensor([0, 1]))}), rng=RowRNG([0, 1]), known=known)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sampler", [s for s in SHORT if not isinstance(s.values[0], Corrector)])
def test_a_draft_is_refused_by_all_but_the_corrector(sampler):
    draft = Tokens(torch.ones(2, 1, 4, dtype=torch.int64), SPECS["k1"])
    with pytest.raises(ValueError, match="draft"):
        sampler(TabularMasked(SPECS["k1"]), Condition({"class": Class(torch.tensor([0, 1]))}), rng=RowRNG([0, 1]), draft=draft)


# --------------------------------------------------------------------------------------------------------------- corrector


def test_no_rounds_give_the_draft_back_without_a_call_and_known_cells_win_over_it():
    model = TabularMasked(SPECS["k1"])
    condition, rng = Condition({"class": Class(torch.tensor([0, 1]))}), RowRNG([0, 1])
    draft = Tokens(torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 1]]]), model.spec)
    out = Corrector(steps=0)(model, condition, rng=rng, draft=draft)
    assert torch.equal(out.tokens.codes, draft.codes) and out.network_calls == {} and out.calls.tolist() == [0, 0]
    known = Tokens(torch.tensor([[[UNKNOWN, 0, UNKNOWN, UNKNOWN]], [[UNKNOWN] * 4]]), model.spec)
    out = Corrector(steps=0)(model, condition, rng=rng, draft=draft, known=known)
    assert out.tokens.codes.tolist() == [[[0, 0, 2, 0]], [[2, 2, 1, 1]]]
    partly = Tokens(torch.tensor([[[0, 1, 2, 0]], [[2, UNKNOWN, 1, 1]]]), model.spec)
    out = Corrector(steps=0)(model, condition, rng=rng, draft=partly)
    assert out.calls.tolist() == [0, 1] and out.tokens.codes[1, 0, [0, 2, 3]].tolist() == [2, 1, 1] and out.tokens.present.all()
    short = Tokens(torch.tensor([[[0, 1, ABSENT, ABSENT]], [[2, 2, 1, 1]]]), model.spec, torch.tensor([2, 4]))
    out = Corrector(steps=3)(model, condition, rng=rng, draft=short)
    assert (out.tokens.codes[0, 0, 2:] == ABSENT).all() and out.tokens.present[1].all()


@pytest.mark.parametrize("parallel", [True, False])
def test_a_round_masks_so_many_cells_and_costs_so_many_calls(parallel):
    model = TabularMasked(TokenSpec((3,), Line(5)))
    draft = Tokens(torch.zeros(40, 1, 5, dtype=torch.int64), model.spec)
    condition = Condition({"class": Class(torch.zeros(40, dtype=torch.int64))})
    out = Corrector(steps=1, cells=2, parallel=parallel)(
        model, condition, rng=RowRNG.of(0, range(40)), draft=draft, choose=lambda logits, rng: torch.full(logits.shape[:-1], 1)
    )
    assert (out.tokens.codes.sum((1, 2)) == 2).all() and (out.calls == (1 if parallel else 2)).all()


# ---------------------------------------------------------------------------------------------------------- Halton's order


def test_radical_inverses_mirror_digits():
    assert [radical_inverse(i, 2) for i in range(1, 6)] == [0.5, 0.25, 0.75, 0.125, 0.625]
    assert [radical_inverse(i, 3) for i in range(1, 5)] == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9])


@pytest.mark.parametrize(("h", "w"), [(1, 1), (4, 4), (8, 8), (16, 16), (3, 7), (1, 9)])
def test_every_cell_comes_once_and_the_first_ones_are_spread(h, w):
    points = halton_points(h, w)
    assert sorted(points) == [(y, x) for y in range(h) for x in range(w)]
    if (h, w) == (16, 16):
        quadrants = [(y // 8) * 2 + x // 8 for y, x in points[:32]]
        assert min(quadrants.count(q) for q in range(4)) >= 6
        gaps = [min(abs(y - v) + abs(x - u) for v, u in points[:i]) for i, (y, x) in enumerate(points[:16]) if i]
        assert min(gaps) >= 2, "the first sixteen cells do not touch"


@pytest.mark.parametrize("grid", [Raster(3, 5), Line(7), Frames(12.5, 6), Pyramid((1, 2, 3))])
def test_the_order_covers_every_grid_and_a_roll_moves_it_around_the_edges(grid):
    spec = TokenSpec((2, 3), grid)
    model, seen = network_of(spec), []
    cells = spec.levels * spec.positions
    Halton(steps=cells)(model, Condition(), rng=RowRNG.of(0, range(3)), on_step=lambda tokens, *_: seen.append(tokens.present))
    assert [int(step.sum()) for step in seen] == [3 * (i + 1) for i in range(cells)]
    first = [step[0].nonzero().tolist() for step in seen]
    assert first[0][0][0] == 0 and len({n for _, n in first[1]}) == 1, "a position's levels follow each other, coarse first"
    rolls = [torch.stack(seen)[:, row].flatten() for row in range(3)]
    assert not all(torch.equal(rolls[0], other) for other in rolls[1:])
    if isinstance(grid, Pyramid):
        assert all(step[:, :, :1].all() for step in seen[1:]), "coarse scales come first"


def network_of(spec):
    return MaskedTransformer(spec, width=8, depth=1, heads=1).eval()


def test_rows_count_their_own_masked_cells_and_few_masked_cells_go_one_by_one():
    spec = TokenSpec((3,), Line(12))
    lengths = torch.tensor([12, 5, 2, 0])
    out = Halton(steps=5)(network_of(spec), Condition(), rng=RowRNG.of(0, range(4)), lengths=lengths)
    assert out.calls.tolist() == [5, 5, 2, 0]


# -------------------------------------------------------------------------------------------------------------- adaptivity


def test_scores_of_certainty():
    distribution = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]], dtype=torch.float64)
    assert entropies(distribution.log()).tolist() == pytest.approx([float(-(p[p > 0] * p[p > 0].log()).sum()) for p in distribution])
    assert uncertainty(distribution.log(), "confidence").tolist() == pytest.approx([-0.5, -1.0, -0.4])
    assert uncertainty(distribution.log(), "margin").tolist() == pytest.approx([-0.2, -1.0, 0.0])
    assert (uncertainty(torch.zeros(2, 1), "margin") == -1).all(), "a vocabulary of one is certain"


def test_the_factor_rule_counts_as_the_paper_does():
    c = torch.tensor([[0.99, 0.97, 0.8, 0.5], [0.3, 0.2, 0.1, 0.1], [1.0, 1.0, 1.0, -torch.inf]], dtype=torch.float64)
    # (n + 1)(1 - c): 0.02 0.09 0.8 2.5 | 1.4 ... | 0 0 0
    assert count_by_factor(c, 1.0).tolist() == [3, 0, 3]
    assert count_by_factor(c, 0.05).tolist() == [1, 0, 3]


def test_more_gamma_and_lower_thresholds_need_fewer_calls():
    model = TabularMasked(SPECS["k1"], scale=2.0)
    condition = Condition({"class": Class(torch.zeros(200, dtype=torch.int64))})

    def calls(sampler):
        return float(sampler(model, condition, rng=RowRNG.of(0, range(200))).calls.double().mean())

    by_gamma = [calls(EntropyBounded(gamma=g)) for g in (0.0, 0.4, 1.0, 100.0)]
    assert by_gamma == sorted(by_gamma, reverse=True) and by_gamma[0] == 4 and by_gamma[-1] == 1
    by_threshold = [calls(ConfidenceThreshold(threshold=x)) for x in (1.1, 0.7, 0.5, 0.01)]
    assert by_threshold == sorted(by_threshold, reverse=True) and by_threshold[0] == 4 and by_threshold[-1] == 1


# ---------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FirstHitting(cells_per_call=0), "cells_per_call=0: expected"),
        (lambda: FirstHitting(order=3), "order=3: expected 1 or 2"),
        (lambda: Ancestral(steps=0), "steps=0: expected"),
        (lambda: Ancestral(schedule="log"), "linear, cosine"),
        (lambda: Halton(steps=0), "steps=0: expected"),
        (lambda: Halton(schedule="log"), "cosine, linear"),
        (lambda: EntropyBounded(gamma=-1.0), "gamma=-1.0: expected"),
        (lambda: EntropyBounded(order="random"), "entropy, confidence, margin"),
        (lambda: EntropyBounded(limit=0), "limit=0: expected"),
        (lambda: ConfidenceThreshold(rule="entropy"), "threshold, factor"),
        (lambda: ConfidenceThreshold(threshold=0.0), "threshold=0.0: expected"),
        (lambda: ConfidenceThreshold(block=0), "block=0: expected"),
        (lambda: Remasking(strategy="none"), "cap, rescale, conf, loop"),
        (lambda: Remasking(eta=1.5), r"eta=1.5: expected"),
        (lambda: Remasking(steps=0), "steps=0: expected"),
        (lambda: Remasking(t_on=0.01), "t_off < t_on"),
        (lambda: Remasking(schedule="log"), "linear, cosine"),
        (lambda: Corrector(steps=-1), "steps=-1: expected"),
        (lambda: Corrector(cells=0), "cells=0: expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_the_sampler_is_built(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
