"""Properties of the any-order generator: densities of subsets and orders, what is read and what is not, and its training."""

import itertools
import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, codes, everything, randomise

from gentok.flow.random_cells import random_rank
from gentok.generators.any_order import AnyOrderTransformer
from gentok.generators.base import AnyOrder, capabilities
from gentok.samplers.guided import guided
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Frames, Line, RowRNG, Tokens, TokenSpec

SPECS = [RASTER, LEVELS, STRIDED]
BY = ["prefix", "cross", "adaln"]
TINY = TokenSpec((3,), Line(4))
TWO = TokenSpec((3, 2), Line(2))


def any_order(spec, condition_spec=None, dtype=torch.float64, **options):
    return randomise(AnyOrderTransformer(spec, condition_spec, **{"width": 16, "depth": 2, "heads": 2, **options})).to(dtype)


def ranked(spec, order):
    """rank int64 [1, K, N] of cells (k, n) in order."""
    rank = torch.zeros(1, spec.levels, spec.positions, dtype=torch.int64)
    for r, (k, n) in enumerate(order):
        rank[0, k, n] = r + 1
    return rank


def fillings(spec, tokens, cells):
    """Every way to fill the cells (k, n) of one row of tokens."""
    ways = list(itertools.product(*(range(spec.vocab_sizes[k]) for k, _ in cells)))
    out = tokens.codes.repeat(len(ways), 1, 1)
    for j, (k, n) in enumerate(cells):
        out[:, k, n] = torch.tensor([way[j] for way in ways])
    return Tokens(out, spec)


@pytest.mark.parametrize("spec", [TINY, TWO])
def test_the_density_of_every_subset_in_every_order_sums_to_one(spec):
    """Whatever is visible, whatever is asked, and also where cells are neither."""
    model, tokens = any_order(spec), codes(spec, 1)
    cells = [tuple(cell) for cell in spec.exists().nonzero().tolist()]
    for roles in itertools.product(("visible", "asked", "neither"), repeat=len(cells)):
        asked = [cell for cell, role in zip(cells, roles) if role == "asked"]
        given = tokens.codes.clone()
        for (k, n), role in zip(cells, roles):
            given[0, k, n] = UNKNOWN if role == "neither" else given[0, k, n]
        if not asked:
            continue
        filled = fillings(spec, Tokens(given, spec), asked)
        for order in (asked, asked[::-1]):
            rank = ranked(spec, order).expand_as(filled.codes)
            total = model.log_prob(filled, Condition(), rank > 0, rank).exp().sum()
            assert abs(float(total) - 1) < 1e-12


@pytest.mark.parametrize("spec", [TINY, TWO, LEVELS])
def test_the_density_is_the_product_of_conditionals_that_see_only_what_came_before(spec):
    model, tokens = any_order(spec), codes(spec, 1)
    cells = [tuple(cell) for cell in spec.exists().nonzero().tolist()]
    for seed in range(4):
        order = [cells[i] for i in RowRNG([seed]).permutation(len(cells))[0].tolist()][: len(cells) - seed]
        rank = ranked(spec, order)
        state, total = tokens.codes.masked_fill(rank > 0, UNKNOWN), 0.0
        for r, (k, n) in enumerate(order):
            distribution = model.logits(Tokens(state.clone(), spec), Condition(), rank)[0, k, n]
            drafted = model.logits(tokens, Condition(), rank, torch.tensor([r]))[0, k, n]
            assert torch.allclose(distribution, drafted, atol=1e-12), "what is beyond `seen` must not matter"
            total += float(distribution.detach().log_softmax(0)[tokens.codes[0, k, n]])
            state[0, k, n] = tokens.codes[0, k, n]
        assert abs(float(model.log_prob(tokens, Condition(), rank > 0, rank)) - total) < 1e-10


@pytest.mark.parametrize("spec", SPECS)
def test_a_distribution_depends_on_every_earlier_cell_and_on_no_later_or_unasked_one(spec):
    model, tokens = any_order(spec), codes(spec, 1)
    cells = [tuple(cell) for cell in spec.exists().nonzero().tolist()]
    turned = [cells[i] for i in RowRNG([5]).permutation(len(cells))[0].tolist()]
    visible, order = turned[:3], turned[3:]
    rank = ranked(spec, order)
    k, n = order[2]
    want = model.logits(tokens, Condition(), rank)[0, k, n]
    for cell in turned:
        other = tokens.codes.clone()
        other[0, cell[0], cell[1]] = (other[0, cell[0], cell[1]] + 1) % spec.vocab_sizes[cell[0]]
        got = model.logits(Tokens(other, spec), Condition(), rank)[0, k, n]
        change = float((got - want).detach()[torch.isfinite(want)].abs().max())
        assert (change > 1e-6) == (cell in visible or cell in order[:2]), cell


def test_seen_cuts_off_what_comes_after_it():
    model, tokens = any_order(TINY), codes(TINY, 1)
    rank = ranked(TINY, [(0, 2), (0, 0), (0, 3), (0, 1)])
    blind = model.logits(tokens, Condition(), rank, torch.tensor([1]))
    other = Tokens(tokens.codes.clone(), TINY)
    other.codes[0, 0, 0] = (other.codes[0, 0, 0] + 1) % 3
    assert torch.allclose(blind, model.logits(other, Condition(), rank, torch.tensor([1])), atol=1e-12)
    assert not torch.allclose(model.logits(tokens, Condition(), rank)[0, 0, 3], blind[0, 0, 3])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("spec", SPECS)
def test_distributions_of_some_cells_are_those_of_all_whatever_is_left_out(spec, by):
    """Rows with other numbers of masked cells, cells that are neither, codes behind what is seen; with guidance too."""
    model, tokens, batch = any_order(spec, EVERYTHING, condition_by=by), codes(spec, 6), 6
    condition, rng = everything(batch), RowRNG.of(5, range(batch))
    exists = spec.exists().expand_as(tokens.codes)
    asked = exists & (rng.uniform(*exists.shape[1:]) < torch.linspace(0.2, 1, batch)[:, None, None])
    asked[:, 0, 0] = True
    rank = random_rank(asked, rng)
    drawn = torch.tensor([0, 1, 2, 0, 3, 2]).minimum(asked.sum((1, 2)) - 1)
    given = tokens.codes.masked_fill(asked & (rank > drawn[:, None, None] + 2), UNKNOWN)  # two more than were accepted
    given[:, 0, 1] = torch.where(exists[:, 0, 1] & ~asked[:, 0, 1], UNKNOWN, given[:, 0, 1])  # neither visible nor asked
    now = Tokens(given, spec)
    order = torch.where(rank > 0, rank, 99).flatten(1).argsort(1)
    for width, seen in ((1, None), (3, None), (2, drawn)):
        at = (drawn if seen is not None else torch.zeros_like(drawn))[:, None] + torch.arange(width)
        cells = order.gather(1, at.minimum(asked.sum((1, 2))[:, None] - 1))
        for this in (model, guided(model, 1.7, "linear")):
            expected = AnyOrder.conditionals(this, now, condition, rank, cells, seen)
            assert torch.allclose(this.conditionals(now, condition, rank, cells, seen), expected, atol=1e-10)


def test_the_order_of_the_asked_matters_and_the_visible_block_has_none():
    model, tokens = any_order(TINY), codes(TINY, 1)
    asked = torch.tensor([[[True, True, False, False]]])
    left, right = (model.log_prob(tokens, Condition(), asked, ranked(TINY, order)) for order in ([(0, 0), (0, 1)], [(0, 1), (0, 0)]))
    assert not torch.allclose(left, right)
    block = model.logits(tokens, Condition(), model.rank(asked))
    decoded = model.logits(tokens, Condition(), ranked(TINY, [(0, 2), (0, 3), (0, 0), (0, 1)]))
    assert not torch.allclose(block[0, 0, 0], decoded[0, 0, 0]), "the visible block attends fully to itself, decoded cells do not"


def test_the_models_own_order_goes_from_left_to_right_and_coarse_levels_first():
    rank = any_order(STRIDED).rank(STRIDED.exists()[None])
    assert rank[0].tolist() == [[1, 0, 0, 7, 0, 0], [2, 0, 5, 0, 9, 0], [3, 4, 6, 8, 10, 11]]
    drawn = random_rank(STRIDED.exists()[None].expand(4000, -1, -1), RowRNG.of(0, range(4000)))
    assert (drawn.flatten(1).sort(1).values[:, 7:] == torch.arange(1, 12)).all() and ((drawn > 0) == STRIDED.exists()).all()
    assert float((drawn.double().mean(0)[STRIDED.exists()] - 6).abs().max()) < 0.3


@pytest.mark.parametrize("orders", ["left_to_right", "random"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_the_joint_density_of_the_asked_cells(spec, orders):
    model = any_order(spec, CLASSES, orders=orders)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    tokens.codes[0, -1, -2:] = ABSENT
    out = model.loss(tokens, condition, RowRNG([0, 1, 2, 3]))
    rng = RowRNG([0, 1, 2, 3])
    cells = tokens.present.flatten(1).sum(1)
    count = torch.ceil((0.85 + 0.14 * rng.uniform()) * cells).long()
    order = rng.uniform(*tokens.codes.shape[1:]).masked_fill(~tokens.present, 2.0).flatten(1)
    asked = (order.argsort(1).argsort(1) < count[:, None]).view(tokens.codes.shape) & tokens.present
    rank = model.rank(asked) if orders == "left_to_right" else random_rank(asked, rng)
    assert torch.allclose(out.loss.double(), -model.log_prob(tokens, condition, asked, rank).sum() / asked.sum())
    assert int(out.count) == int(asked.sum()) and out.nll is None


def test_the_asked_share_rises_with_the_runs_progress():
    spec = TokenSpec((3,), Line(40))
    model = any_order(spec, width=8, heads=1, depth=1, warmup=0.5)
    for progress, share in ((0.0, 0.15), (0.25, 0.535), (0.5, 0.92), (1.0, 0.92)):
        model.progress = progress
        out = model.loss(codes(spec, 200), Condition(), RowRNG.of(1, range(200)))
        assert abs(float(out.terms["asked"]) - share) < 0.025


@pytest.mark.parametrize("spec", SPECS)
def test_nll_is_the_exact_density_of_all_cells(spec):
    model, tokens = any_order(spec), codes(spec, 3)
    tokens.codes[1, -1, -1] = ABSENT
    distributions = model(tokens).log_softmax(-1)
    want = -(distributions.gather(3, tokens.codes.clamp(min=0)[..., None])[..., 0] * tokens.present).sum((1, 2))
    assert torch.allclose(model.nll_bound(tokens, Condition()), want)


@pytest.mark.parametrize("spec", SPECS)
def test_ids_beyond_a_levels_vocabulary_are_impossible_and_the_rest_possible(spec):
    tokens = Tokens.unknown(spec, 2)
    logits = any_order(spec).logits(tokens, Condition(), any_order(spec).rank(tokens.masked))
    possible = torch.arange(spec.vocab) < torch.tensor(spec.vocab_sizes)[:, None, None]
    assert torch.equal(torch.isfinite(logits), possible.expand_as(logits))


@pytest.mark.parametrize("by", BY)
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    model = any_order(LEVELS, EVERYTHING, condition_by=by, dropout=0.2, condition_dropout=0.5, orders="random").train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    assert torch.allclose(sum(part.loss * part.count for part in parts) / whole.count, whole.loss, rtol=1e-12)


@pytest.mark.parametrize("by", BY)
def test_every_part_of_the_condition_is_read_and_null_rows_mix_with_others(by):
    model = any_order(RASTER, EVERYTHING, condition_by=by)
    tokens, condition = codes(RASTER, 3), everything(3)
    both = model(Tokens(tokens.codes.repeat(2, 1, 1), RASTER), Condition.concat([condition, condition.null()]))
    assert torch.allclose(both[:3], model(tokens, condition)) and torch.allclose(both[3:], model(tokens, condition.null()))
    assert torch.allclose(both[1], both[4]) and not torch.allclose(both[0], both[3])


@pytest.mark.parametrize("spec,options", [
    pytest.param(RASTER, {}, marks=pytest.mark.slow),
    pytest.param(STRIDED, {"condition_by": "adaln", "orders": "random"}, marks=pytest.mark.slow),
    (LEVELS, {"condition_by": "cross", "tie_embeddings": True}),
    pytest.param(TokenSpec((5,), Frames(10.0, 6)), {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_four_items_are_learned_by_heart(spec, options):
    torch.manual_seed(0)
    model = AnyOrderTransformer(spec, CLASSES, width=32, depth=2, heads=2, condition_dropout=0.0, **options)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, 1, 2, -1]))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.nll_bound(tokens, condition).mean()
    for step in range(120):
        out = model.loss(tokens, condition, RowRNG.of(0, range(4), step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert model.nll_bound(tokens, condition).mean() < 0.2 * first


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        model = AnyOrderTransformer(LEVELS, CLASSES)
        out = model.loss(Tokens(torch.zeros(2, 3, 5, dtype=torch.int64), LEVELS), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64)))
    assert out.loss.is_meta
    out.loss.backward()


@pytest.mark.parametrize("settings, message", [
    ({"asked": [0.9, 0.2]}, "low <= high"), ({"asked": [0.5]}, "two shares"), ({"warmup": -1.0}, "warmup=-1.0: expected"),
    ({"orders": "raster"}, "random"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        AnyOrderTransformer(RASTER, **settings)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused():
    model, tokens = any_order(TINY), codes(TINY, 2)
    with pytest.raises(ValueError, match="this generator models 1 x 12"):
        any_order(RASTER)(tokens)
    tokens.codes[1, 0, 2] = UNKNOWN
    asked = torch.ones(2, 1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="row 1 asks for level 0, position 2"):
        model.log_prob(tokens, Condition(), asked)
    asked[:, :, 2] = False
    for rank in (torch.ones(2, 1, 4, dtype=torch.int64), asked.long(), torch.zeros(2, 1, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="rank must be positive, and different"):
            model.log_prob(tokens, Condition(), asked, rank)
    assert capabilities(AnyOrderTransformer) == ("AnyOrder",)
    assert math.isfinite(float(model.log_prob(tokens, Condition(), asked).sum()))
