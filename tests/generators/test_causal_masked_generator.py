"""Properties of causal masking: items without holes are the autoregressive model's, holes are predicted behind all that is kept."""

import itertools

import pytest
import torch
from generator_kit import CASES, CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, autoregressive, codes, everything, fed, randomise, same

from gentok.generators.causal_masked import CausalMasked
from gentok.generators.hole_order import arrange
from gentok.generators.holes import draw_holes
from gentok.prompt import keep_mask
from gentok.region_likelihood import region_nll
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.zipar import ZipAR
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Line, Raster, Tokens, TokenSpec


def causal_masked(spec, condition_spec=None, dtype=torch.float64, **options):
    return randomise(CausalMasked(spec, condition_spec, **{"width": 16, "depth": 2, "heads": 2, **options})).to(dtype)


def with_holes(tokens, holes):
    """The tokens [B, K, N], UNKNOWN in holes bool [N]."""
    return Tokens(tokens.codes.masked_fill(holes, UNKNOWN), tokens.spec, tokens.lengths)


def middle(spec):
    """bool [N]: two holes with something behind each."""
    out = torch.zeros(spec.positions, dtype=torch.bool)
    out[1], out[3] = True, True
    return out


@pytest.mark.parametrize("layout,spec", CASES)
def test_without_holes_its_loss_and_nll_are_those_of_the_autoregressive_model(layout, spec):
    model = causal_masked(spec, EVERYTHING, layout=layout)
    plain = autoregressive(spec, EVERYTHING, layout=layout)
    weights = dict(model.state_dict())
    weights["token_table.weight"] = weights["token_table.weight"][: len(plain.token_table.weight)]
    plain.load_state_dict(weights)
    tokens, condition = codes(spec, 3), everything(3)
    tokens.codes[1, -1, -2:] = ABSENT
    want = plain.loss(tokens, condition, RowRNG.of(0, range(3)))
    assert torch.equal(model.nll_bound(tokens, condition), plain.nll_bound(tokens, condition))
    assert torch.equal(model.loss(tokens, condition, RowRNG.of(0, range(3))).loss, want.loss), "nothing is drawn outside of training"
    none = arrange(torch.full((3, spec.positions), -1), model.layout)
    got = model._arranged_hidden(tokens.codes, none, condition, None)
    for a, b in zip(got, plain._level_hidden(tokens.codes, condition, None)):
        assert torch.allclose(a, b, atol=1e-12)
    model.holes = 0.0
    model.train(), plain.train()
    rng = [RowRNG.of(0, range(3)) for _ in range(2)]
    assert torch.equal(model.loss(tokens, condition, rng[0]).loss, plain.loss(tokens, condition, rng[1]).loss)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("layout,spec", CASES)
def test_the_training_loss_is_the_mean_over_all_cells_in_the_order_in_which_samplers_fill_holes(layout, spec, ends):
    """What is trained and what is sampled share no index map: rows in a batch, and a layout."""
    options = {"condition_dropout": 0.0, "holes": 1.5, "max_holes": 2, "layout": layout, "ends": ends}
    model = causal_masked(spec, CLASSES, **options).train()
    tokens, condition = codes(spec, 12), Condition({"class": Class(torch.arange(12) % 3)})
    if ends:
        tokens.codes[2, :, -1] = ABSENT
    out = model.loss(tokens, condition, RowRNG.of(5, range(12)))
    holes = draw_holes(tokens, 1.5, 2, True, RowRNG.of(5, range(12)).fork("holes"))
    assert len(set(holes.amax(1).tolist())) > 1, "rows with and without holes"
    ended = int(ends) * sum(int(tokens.codes[b, 0, -1] < 0) for b in range(12) if spec is not STRIDED)
    assert int(out.count) == int(tokens.present.sum()) + ended, "every cell once, and no sentinel"
    model.eval()
    for b in range(12):
        want = model.with_holes(holes[b]).nll_bound(tokens.rows([b]), condition.rows([b]))
        assert torch.allclose(out.nll[b : b + 1], want, rtol=1e-9)


@pytest.mark.parametrize("layout,spec", CASES)
def test_no_cell_of_a_hole_is_seen_before_it_is_to_be(layout, spec):
    model, tokens, missing = causal_masked(spec, layout=layout), codes(spec, 1), middle(spec)
    order = model.arranged(with_holes(tokens, missing))
    want, step = order(tokens), order.layout.step
    kept = int(step[:, ~missing].max())
    for k, n in spec.exists().nonzero().tolist():
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        got, own = order(Tokens(other, spec)), int(step[k, n])
        assert same(want[:, : own + 1], got[:, : own + 1], 1e-12)
        if own + 1 < order.layout.steps:
            assert not same(want[:, own + 1 :], got[:, own + 1 :], 1e-6)
        if missing[n]:
            assert own > kept, "and so nothing that is kept depends on it"
        elif own < kept:
            assert not same(want[:, kept + 1 :], got[:, kept + 1 :], 1e-6), "holes depend on both sides"


@pytest.mark.parametrize("layout,spec", CASES)
def test_the_order_with_holes_is_computed_with_a_cache_as_without(layout, spec):
    model = causal_masked(spec, EVERYTHING, layout=layout)
    tokens, condition = codes(spec, 3), everything(3)
    order = model.arranged(with_holes(tokens, middle(spec)))
    ids, steps = fed(order, tokens), order.layout.steps
    cache = order.init_cache(condition, 3, steps)
    got = [order.logits(ids[:, s : s + 1], cache, torch.full((3,), s)) for s in range(steps)]
    assert same(order(tokens, condition), torch.cat(got, 1))


def test_a_row_of_a_batch_equals_the_row_alone_also_in_training():
    options = {"dropout": 0.2, "token_dropout": 0.3, "condition_dropout": 0.5, "holes": 1.5, "max_holes": 3}
    for layout, spec in (("delayed", LEVELS), ("raster", RASTER)):
        model = causal_masked(spec, EVERYTHING, layout=layout, **options).train()
        tokens, condition = codes(spec, 5), everything(5)
        whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
        for b in range(5):
            alone = model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b]))
            assert torch.allclose(alone.nll, whole.nll[b : b + 1], rtol=1e-12)


@pytest.mark.parametrize("layout,spec", [("raster", TokenSpec((3,), Raster(2, 3))), ("delayed", TokenSpec((3, 2), Line(4)))])
def test_the_likelihood_of_a_region_given_the_rest_sums_to_one(layout, spec):
    model, tokens = causal_masked(spec, layout=layout), codes(spec, 1)
    asked = spec.exists() & middle(spec)[None]
    cells = asked.nonzero().tolist()
    every = torch.tensor(list(itertools.product(*(range(spec.vocab_sizes[k]) for k, _ in cells))))
    filled = tokens.codes.expand(len(every), -1, -1).clone()
    for column, (k, n) in enumerate(cells):
        filled[:, k, n] = every[:, column]
    nats, count, exact = region_nll(model, Tokens(filled, spec), Condition(), asked, RowRNG.of(0, range(len(every))))
    assert exact and count.unique().tolist() == [len(cells)]
    assert torch.allclose((-nats).exp().sum(), torch.ones((), dtype=torch.float64))


def test_a_known_beginning_needs_no_holes_and_a_known_half_does():
    model, tokens = causal_masked(RASTER), codes(RASTER, 2)
    assert model.arranged(with_holes(tokens, ~keep_mask("top-half", RASTER.grid))) is model
    order = model.arranged(with_holes(tokens, ~keep_mask("left-half", RASTER.grid)))
    assert order is not model and order.token_table is model.token_table
    spans = causal_masked(RASTER, shape="spans")
    assert spans.arranged(with_holes(tokens, ~keep_mask("left-half", RASTER.grid))).layout.steps == 12 + 2 * 3


def test_holes_that_it_cannot_fill_are_refused_in_one_line():
    model, tokens = causal_masked(RASTER, max_holes=2, shape="spans"), codes(RASTER, 2)
    known, rng = with_holes(tokens, ~keep_mask("left-half", RASTER.grid)), RowRNG.of(0, range(2))
    with pytest.raises(ValueError, match="are 3 spans, this model was trained with 2 at most"):
        AutoregressiveSampler()(model, Condition(), rng=rng, known=known)
    with pytest.raises(ValueError, match="zipar .* use sampler=jacobi"):
        ZipAR()(causal_masked(RASTER), Condition(), rng=rng, known=known)
