"""Properties of the self-speculative generator: its trunk is a masked model, its verified distributions read what
came earlier and nothing else."""

import itertools
import math

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, LEVELS, RASTER, STRIDED, codes, everything, randomise

from gentok.flow.random_cells import random_rank
from gentok.generators.base import capabilities
from gentok.generators.self_speculative import SelfSpeculativeTransformer
from gentok.types import UNKNOWN, Class, Condition, Line, RowRNG, Tokens, TokenSpec

SPECS = [RASTER, LEVELS, STRIDED]
SMALL = {"width": 16, "depth": 1, "heads": 2}


def self_speculative(spec, condition_spec=None, **options):
    return randomise(SelfSpeculativeTransformer(spec, condition_spec, **{**SMALL, **options})).double()


@torch.no_grad()
def window(model, tokens, seed=0, known=3):
    """(rank of a random order of all but `known` cells, drafts, state) of tokens of one row."""
    exists = tokens.present
    rank = (random_rank(exists, RowRNG([seed])) - known).clamp(min=0)
    return rank, *model.draft(Tokens(tokens.codes.masked_fill(rank > 0, UNKNOWN), tokens.spec), Condition())


@pytest.mark.parametrize("spec", SPECS)
def test_drafts_are_the_masked_models_distributions_and_the_first_cells_verified_distribution_is_its_draft(spec):
    model, tokens = self_speculative(spec), codes(spec, 1)
    rank, drafted, state = window(model, tokens)
    hidden = Tokens(tokens.codes.masked_fill(rank > 0, UNKNOWN), spec)
    assert torch.allclose(drafted, model.logits(hidden, Condition()))
    verified = model.verify(state, tokens, rank)
    assert torch.equal(verified[rank == 1], drafted[rank == 1])
    second = (rank == 2).nonzero()[0].tolist()
    assert not torch.allclose(verified[tuple(second)], drafted[tuple(second)])


@pytest.mark.parametrize("spec", SPECS)
def test_a_verified_distribution_reads_every_earlier_cell_and_no_later_one(spec):
    model, tokens = self_speculative(spec), codes(spec, 1)
    rank, _, state = window(model, tokens)
    third = tuple((rank == 4).nonzero()[0].tolist())
    want = model.verify(state, tokens, rank)[third].detach()
    for k, n in spec.exists().nonzero().tolist():
        if rank[0, k, n] == 0:
            continue  # what the trunk saw: it is in the state
        other = tokens.codes.clone()
        other[0, k, n] = (other[0, k, n] + 1) % spec.vocab_sizes[k]
        got = model.verify(state, Tokens(other, spec), rank)[third].detach()
        assert (float((got - want)[torch.isfinite(want)].abs().max()) > 1e-7) == (0 < rank[0, k, n] < 4), (k, n)
        other[0, k, n] = UNKNOWN
        got = model.verify(state, Tokens(other, spec), rank)[third]
        assert torch.allclose(got, want) == (rank[0, k, n] >= 4)


@pytest.mark.parametrize("spec", SPECS)
def test_every_verified_distribution_is_one(spec):
    model, tokens = self_speculative(spec), codes(spec, 1)
    rank, _, state = window(model, tokens)
    possible = torch.arange(spec.vocab) < torch.tensor(spec.vocab_sizes)[:, None, None]
    assert torch.equal(torch.isfinite(model.verify(state, tokens, rank)), possible.expand(1, -1, spec.positions, -1))


def test_before_training_it_verifies_what_it_drafts():
    model, tokens = SelfSpeculativeTransformer(LEVELS, **SMALL), codes(LEVELS, 1)
    rank, drafted, state = window(model, tokens)
    assert torch.equal(model.verify(state, tokens, rank), drafted)


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_that_of_the_drafts_plus_that_of_the_verified_distributions(spec):
    model = self_speculative(spec, CLASSES)
    tokens, condition = codes(spec, 4), Condition({"class": Class(torch.tensor([0, -1, 1, 2]))})
    out = model.loss(tokens, condition, RowRNG([0, 1, 2, 3]))
    rng = RowRNG([0, 1, 2, 3])
    cells = tokens.present.flatten(1).sum(1)
    count = torch.ceil(torch.cos(0.5 * math.pi * rng.uniform()) * cells).long()
    order = rng.uniform(*tokens.codes.shape[1:]).masked_fill(~tokens.present, 2.0).flatten(1)
    chosen = (order.argsort(1).argsort(1) < count[:, None]).view(tokens.codes.shape) & tokens.present
    rank = random_rank(chosen, rng)
    drafted, state = model.draft(Tokens(tokens.codes.masked_fill(chosen, UNKNOWN), spec), condition)
    want = 0.0
    for logits in (drafted, model.verify(state, tokens, rank)):
        nats = -logits.log_softmax(-1).gather(3, tokens.codes.clamp(min=0)[..., None])[..., 0]
        want = want + nats[chosen].mean()
    assert torch.allclose(out.loss, want) and int(out.count) == int(chosen.sum()) and out.nll is None
    assert torch.allclose(out.terms["draft"] + out.terms["verify"], out.loss)


@pytest.mark.parametrize("by", ["prefix", "cross", "adaln"])
def test_a_row_of_a_batch_equals_the_row_alone_also_in_training(by):
    model = self_speculative(LEVELS, EVERYTHING, condition_by=by, dropout=0.2, condition_dropout=0.5).train()
    tokens, condition = codes(LEVELS, 5), everything(5)
    whole = model.loss(tokens, condition, RowRNG.of(3, range(5)))
    parts = [model.loss(tokens.rows([b]), condition.rows([b]), RowRNG.of(3, [b])) for b in range(5)]
    assert torch.allclose(sum(part.loss * part.count for part in parts) / whole.count, whole.loss, rtol=1e-12)


def test_the_causal_blocks_learn_what_a_masked_model_cannot_say():
    """Two cells that are always equal, and fair: no draft can be sure of a cell, the verified distribution of the second is."""
    torch.manual_seed(0)
    spec = TokenSpec((2,), Line(2))
    model = SelfSpeculativeTransformer(spec, width=16, depth=1, heads=2)
    tokens = Tokens(torch.tensor([[[0, 0]], [[1, 1]]]).repeat(16, 1, 1), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(100):
        out = model.loss(tokens, Condition(), RowRNG.of(0, range(32), step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        drafted, state = model.draft(Tokens.unknown(spec, 2), Condition())
        verified = model.verify(state, tokens.rows([0, 1]), torch.tensor([[[1, 2]]] * 2)).softmax(-1)
    assert drafted.softmax(-1).max() < 0.75
    assert verified[0, 0, 1, 0] > 0.95 and verified[1, 0, 1, 1] > 0.95


def test_it_builds_on_the_meta_device_and_refuses_no_causal_block():
    with torch.device("meta"):
        model = SelfSpeculativeTransformer(LEVELS, CLASSES)
        out = model.loss(Tokens(torch.zeros(2, 3, 5, dtype=torch.int64), LEVELS), Condition(), RowRNG(torch.zeros(2, dtype=torch.int64)))
    out.loss.backward()
    with pytest.raises(ValueError, match="verify_depth=0: expected"):
        SelfSpeculativeTransformer(RASTER, verify_depth=0)
    assert capabilities(SelfSpeculativeTransformer) == ("Masked", "SelfSpeculative")


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_window_bound_is_the_mean_over_orders_of_the_windows_distributions(width):
    """Enumerated: three cells have six orders; and a window of one is the trunk's own bound."""
    spec = TokenSpec((3,), Line(3))
    model, tokens = self_speculative(spec, depth=2), codes(spec, 1)
    wanted = []
    for order in itertools.permutations(range(3)):
        nats = 0.0
        for begin in range(0, 3, width):
            rank = torch.zeros(1, 1, 3, dtype=torch.int64)
            for r, n in enumerate(order[begin:]):
                rank[0, 0, n] = r + 1
            drafted, state = model.draft(Tokens(tokens.codes.masked_fill(rank > 0, UNKNOWN), spec), Condition())
            verified = model.verify(state, tokens, rank)
            for r, n in enumerate(order[begin : begin + width]):
                distribution = (drafted if r == 0 else verified)[0, 0, n].log_softmax(0)
                nats -= float(distribution[tokens.codes[0, 0, n]].detach())
        wanted.append(nats)
    rows = Tokens(tokens.codes.expand(4000, -1, -1), spec)
    found = model.window_bound(rows, Condition(), RowRNG.of(0, range(4000)), width)
    error = float(found.std()) / 4000**0.5
    assert abs(float(found.mean()) - sum(wanted) / 6) < 4 * error + 1e-9
    every = model.window_bound(rows, Condition(), RowRNG.of(1, range(4000)), width, samples=-(-3 // width))
    assert abs(float(every.mean()) - sum(wanted) / 6) < 4 * float(every.std()) / 4000**0.5 + 1e-9
    if width == 1:
        trunk = model.nll_bound(rows, Condition(), RowRNG.of(2, range(4000)), samples=3)
        assert abs(float(trunk.mean() - every.mean())) < 4 * float(trunk.std() + every.std()) / 4000**0.5
