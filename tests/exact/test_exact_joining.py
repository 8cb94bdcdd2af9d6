"""Rows that come while others are drawn, and are handed out before the last one is done, are what they are in a batch of their own."""

import pytest
import torch
from kit import CLASSES, SPECS
from random_weights import randomized
from test_exact_rows import MODELS, SIZES, model_of

from gentok.codebooks.vq import VQ
from gentok.generators.base import Refines
from gentok.generators.coarse_to_fine import CoarseToFine
from gentok.generators.masked import MaskedTransformer
from gentok.nn.kv_cache import KVCache
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.coarse_to_fine import CoarseToFineSampler
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.request import Arrivals, Joining
from gentok.types import Class, Condition

SEEDS = torch.arange(100, 109)
WHEN = {0: [0, 1], 1: [2], 2: [], 3: [3, 4, 5], 6: [6], 7: [7, 8]}
"""Call -> the rows that want to join before it; the first ones are there from the beginning."""


def of(rows):
    return Condition({"class": Class(torch.tensor(rows) % 2)}), RowRNG(SEEDS[torch.tensor(rows)])


class Comers(Arrivals):
    """Lets rows in when it is their time and there is room, and keeps what leaves."""

    def __init__(self, lengths, order):
        self.calls, self.waits, self.lengths, self.order, self.left = 0, [], lengths, order, {}

    def join(self, room):
        assert room >= 0
        if not self.waits:
            self.calls += 1
            self.waits = list(WHEN.get(self.calls, [])) if self.calls <= max(WHEN) else []
        coming, self.waits = self.waits[:room], self.waits[room:]
        if not coming:
            later = self.calls < max(WHEN) and room == self.full
            return self.join(room) if later else None  # nobody is there: time passes
        self.order += coming
        return Joining(*of(coming), None if self.lengths is None else self.lengths[coming])

    def leave(self, rows, tokens, calls, rng):
        for i, row in enumerate(rows):
            assert row not in self.left
            self.left[row] = tokens.codes[i], None if tokens.lengths is None else int(tokens.lengths[i]), calls[i]


def sampler_of(model):
    return CoarseToFineSampler() if isinstance(model, Refines) else AutoregressiveSampler()


def refining(**options):
    """A model of labels and ids with random weights."""
    torch.manual_seed(0)
    sizes = {"refiner_width": 16, "refiner_depth": 1, "refiner_heads": 2, **SIZES}
    model = CoarseToFine(SPECS["k1"], CLASSES, VQ(3, 4), clusters=2, **sizes, **options)
    model.labels(torch.zeros(1, 1, 4, dtype=torch.int64))  # makes the clusters
    return randomized(model, 1).double().eval()


def joined(model, at_once, guidance=1.0, lengths=None):
    """Row of SEEDS -> (codes, length, calls), of rows that joined."""
    order = list(WHEN[0])
    comers = Comers(lengths, order)
    comers.full = at_once
    condition, rng = of(WHEN[0])
    first = None if lengths is None else lengths[WHEN[0]]
    whole = sampler_of(model)(guided(model, guidance), condition, rng=rng, lengths=first, at_once=at_once, arrivals=comers)
    assert sorted(order) == list(range(len(SEEDS))) and len(whole.tokens.codes) == len(SEEDS)
    assert all(whole.tokens.codes[row].equal(codes) for row, (codes, _, _) in comers.left.items()) and len(comers.left) == len(SEEDS)
    return {order[row]: found for row, found in comers.left.items()}


def same(model, at_once, guidance=1.0, lengths=None):
    condition, rng = of(list(range(len(SEEDS))))
    whole = sampler_of(model)(guided(model, guidance), condition, rng=rng, lengths=lengths)
    found = joined(model, at_once, guidance, lengths)
    for row, (codes, length, calls) in found.items():
        if not codes.equal(whole.tokens.codes[row]) or calls != int(whole.calls[row]):
            return False
        if whole.tokens.lengths is not None and length != int(whole.tokens.lengths[row]):
            return False
    return True


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_row_that_joins_draws_what_it_draws_in_a_fixed_batch(name, guidance):
    kind, options = MODELS[name]
    model = model_of(kind, **options)
    assert all(same(model, at_once, guidance) for at_once in (3, 9))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"ends": True}], ids=str)
def test_rows_of_labels_join_and_are_refined_when_they_leave(options, guidance):
    model = refining(**options)
    assert all(same(model, at_once, guidance) for at_once in (3, 9))
    if not options:
        assert same(model, 3, guidance, torch.tensor([3, 2, 3, 1, 3, 4, 2, 0, 1]))


def test_rows_of_different_lengths_join():
    model = model_of("autoregressive")
    assert same(model, 3, lengths=torch.tensor([3, 2, 3, 1, 3, 3, 2, 0, 1]))


def test_a_batch_whose_new_places_keep_the_cache_of_another_row_is_found_out(monkeypatch):
    model = model_of("autoregressive")
    monkeypatch.setattr(KVCache, "put", lambda self, rows, other: None)
    assert not same(model, 9)


def test_rows_that_share_the_numbers_of_others_are_found_out(monkeypatch):
    model = model_of("autoregressive")
    kept = RowRNG.concat
    monkeypatch.setattr(RowRNG, "concat", lambda streams: kept([streams[0], *(RowRNG(torch.zeros(s.batch).long()) for s in streams[1:])]))
    assert not same(model, 3)


def test_who_cannot_let_rows_join_says_so():
    model, (condition, rng) = model_of("autoregressive"), of([0])
    with pytest.raises(ValueError, match="at_once is given"):
        AutoregressiveSampler()(model, condition, rng=rng, arrivals=Comers(None, []))
    with pytest.raises(ValueError, match="cannot wait for others"):
        masked = MaskedTransformer(SPECS["k1"], CLASSES, width=16, depth=2, heads=2)
        MaskGIT()(masked, condition, rng=rng, at_once=1, arrivals=Comers(None, []))
