"""Properties of the masked generator: what is hidden, what is read, and what its bound bounds."""

import itertools
import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, codes, everything, masked

from gentok.flow.random_cells import random_subset
from gentok.generators.base import capabilities
from gentok.generators.masked import MaskedTransformer
from gentok.generators.masked_losses import SCHEDULES
from gentok.types import ABSENT, UNKNOWN, Class, Condition, Line, RowRNG, Tokens, TokenSpec

SPECS = [RASTER, LEVELS, STRIDED]
BY = ["prefix", "cross", "adaln"]


def test_hide_takes_exactly_so_many_present_cells_uniformly():
    tokens = codes(STRIDED, 3000)
    tokens.codes[:, 1, 4] = ABSENT
    count = torch.arange(3000) % 11
    chosen = random_subset(tokens.present, count, RowRNG.of(0, range(3000)))
    present = tokens.codes >= 0
    assert not (chosen & ~present).any()
    assert torch.equal(chosen.flatten(1).sum(1), torch.minimum(count, present.flatten(1).sum(1)))
    share = chosen.double().mean(0)[present[0]]
    assert float((share - share.mean()).abs().max()) < 0.04


@pytest.mark.parametrize("schedule,mean", [("cosine", 2 / math.pi), ("arccos", 2 / math.pi), ("linear", 0.5)])
def test_the_masked_share_follows_the_schedule(schedule, mean):
    spec = TokenSpec((3,), Line(40))
    model = masked(spec, schedule=schedule, width=8, heads=1, depth=1)
    out = model.loss(codes(spec, 600), Condition(), RowRNG.of(1, range(600)))
    assert abs(float(out.terms["masked"]) - mean - 0.5 / 40) < 0.04
    u = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)
    assert torch.allclose(SCHEDULES[schedule](u), torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_the_mean_over_the_masked_cells(spec):
    model = masked(spec, CLASSES)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    tokens.codes[0, -1, -2:] = ABSENT
    out = model.loss(tokens, condition, RowRNG([0, 1, 2, 3]))
    rng = RowRNG([0, 1, 2, 3])
    cells = (tokens.codes >= 0).flatten(1).sum(1)
    chosen = random_subset(tokens.present, torch.ceil(torch.cos(0.5 * math.pi * rng.uniform()) * cells).long(), rng)
    logits = model.logits(Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), spec), condition)
    nats = -logits.log_softmax(-1).gather(3, tokens.codes.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(out.loss, nats[chosen].mean())
    assert int(out.count) == int(chosen.sum()) and out.nll is None


def test_absent_cells_get_no_gradient():
    model = masked(LEVELS)
    tokens = codes(LEVELS, 2)
    tokens.codes[:, 2] = ABSENT
    model.loss(tokens, Condition(), RowRNG([0, 1])).loss.backward()
    assert float(model.head.weight.grad[12:].abs().max()) == 0.0 and float(model.head.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("spec", SPECS)
def test_every_known_cell_is_read_and_no_hidden_one(spec):
    model = masked(spec)
    tokens = codes(spec, 1)
    first = spec.exists().nonzero()[0].tolist()
    tokens.codes[0, first[0], first[1]] = UNKNOWN
    want = model.logits(tokens, Condition())[0, first[0], first[1]]
    for k, n in spec.exists().nonzero()[1:].tolist():
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        got = model.logits(Tokens(other, spec), Condition())[0, first[0], first[1]]
        assert (got - want)[torch.isfinite(want)].abs().max() > 1e-6, (k, n)


@pytest.mark.parametrize("spec", SPECS)
def test_ids_beyond_a_levels_vocabulary_are_impossible_and_the_rest_possible(spec):
    logits = masked(spec).logits(Tokens.unknown(spec, 2), Condition())
    possible = torch.arange(spec.vocab) < torch.tensor(spec.vocab_sizes)[:, None, None]
    assert torch.equal(torch.isfinite(logits), possible.expand_as(logits))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("uses_time", [False, True])
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(by, uses_time):
    options = {"condition_by": by, "uses_time": uses_time, "dropout": 0.2, "condition_dropout": 0.5}
    model = masked(LEVELS, EVERYTHING, **options).train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    total = sum(part.loss * part.count for part in parts)
    assert torch.allclose(total / whole.count, whole.loss, rtol=1e-12)
    bound = model.eval().nll_bound(tokens, condition, RowRNG.of(3, range(5)), samples=2)
    assert torch.allclose(model.nll_bound(tokens.rows([2]), condition.rows([2]), RowRNG.of(3, [2]), samples=2), bound[2:3], rtol=1e-12)


@pytest.mark.parametrize("by", BY)
def test_null_rows_mix_with_others(by):
    model = masked(RASTER, EVERYTHING, condition_by=by)
    tokens, condition = Tokens.unknown(RASTER, 3), everything(3)
    both = model.logits(
        Tokens(tokens.codes.repeat(2, 1, 1), RASTER), Condition.concat([condition, condition.null()])
    )  # fmt: skip
    assert torch.allclose(both[:3], model.logits(tokens, condition))
    assert torch.allclose(both[3:], model.logits(tokens, condition.null()))
    assert torch.allclose(both[1], both[4]) and not torch.allclose(both[0], both[3])


def test_time_matters_only_where_it_is_used():
    tokens = Tokens.unknown(RASTER, 2)
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([1.0, 1.0])
    timed, free = masked(RASTER, uses_time=True), masked(RASTER)
    assert torch.equal(free.logits(tokens, Condition(), early), free.logits(tokens, Condition(), late))
    assert not torch.allclose(timed.logits(tokens, Condition(), early), timed.logits(tokens, Condition(), late))
    assert torch.equal(timed.logits(tokens, Condition()), timed.logits(tokens, Condition(), late)), "all masked is t = 1"
    assert timed.uses_time and not free.uses_time


def test_the_bound_is_the_mean_over_all_orders():
    spec = TokenSpec((3,), Line(3))
    model = masked(spec)
    tokens = codes(spec, 1)
    code = tokens.codes[0, 0]
    nats = []
    for order in itertools.permutations(range(3)):
        state = torch.full((1, 1, 3), UNKNOWN)
        total = 0.0
        for n in order:
            total -= float(model.logits(Tokens(state.clone(), spec), Condition())[0, 0, n].log_softmax(0)[code[n]].detach())
            state[0, 0, n] = code[n]
        nats.append(total)
    many = Tokens(tokens.codes.expand(4000, -1, -1).contiguous(), spec)
    estimate = model.nll_bound(many, Condition(), RowRNG.of(0, range(4000)), samples=2)
    error = float(estimate.std()) / math.sqrt(4000)
    assert abs(float(estimate.mean()) - sum(nats) / 6) < 4 * error
    assert error < 0.02


def test_label_smoothing_adds_the_uniform_distribution():
    tokens = codes(RASTER, 2)
    plain = masked(RASTER).train().loss(tokens, Condition(), RowRNG([0, 1]))
    uniform = masked(RASTER, label_smoothing=1.0).train().loss(tokens, Condition(), RowRNG([0, 1]))
    mixed = masked(RASTER, label_smoothing=0.25).train().loss(tokens, Condition(), RowRNG([0, 1]))
    assert torch.allclose(mixed.loss, 0.75 * plain.loss + 0.25 * uniform.loss)
    assert torch.equal(mixed.terms["nll"], plain.loss)
    assert torch.equal(masked(RASTER, label_smoothing=1.0).loss(tokens, Condition(), RowRNG([0, 1])).loss, plain.loss)


@pytest.mark.parametrize("spec,options", [
    pytest.param(RASTER, {}, marks=pytest.mark.slow),
    (STRIDED, {"condition_by": "adaln", "uses_time": True}),
    pytest.param(LEVELS, {"condition_by": "cross", "tie_embeddings": True, "activation": "gelu"}, marks=pytest.mark.slow),
    pytest.param(STRIDED, {"objective": "any_order", "times": "stratified"}, marks=pytest.mark.slow),
    (RASTER, {"objective": "elbo", "schedule": "cosine", "uses_time": True}),
])  # fmt: skip
def test_four_items_are_learned_by_heart(spec, options):
    torch.manual_seed(0)
    model = MaskedTransformer(spec, CLASSES, width=32, depth=2, heads=2, condition_dropout=0.0, **options)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, 1, 2, -1]))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.nll_bound(tokens, condition, RowRNG([0] * 4), samples=4).mean()
    for step in range(150):
        out = model.loss(tokens, condition, RowRNG.of(0, range(4), step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert model.nll_bound(tokens, condition, RowRNG([0] * 4), samples=4).mean() < 0.2 * first


def test_it_builds_and_describes_itself_on_the_meta_device():
    with torch.device("meta"):
        model = MaskedTransformer(LEVELS, CLASSES, uses_time=True)
        out = model.loss(Tokens(torch.zeros(2, 3, 5, dtype=torch.int64), LEVELS), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64)))
    assert out.loss.is_meta
    out.loss.backward()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no masking schedule .*linear, cosine, arccos, polynomial, geometric"):
        MaskedTransformer(RASTER, schedule="cubic")
    with pytest.raises(ValueError, match="this generator models 1 x 12"):
        masked(RASTER).logits(codes(TokenSpec((7,), Line(4)), 2), Condition())
    assert capabilities(MaskedTransformer) == ("Masked",)
