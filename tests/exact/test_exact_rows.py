"""Rows that share what they begin with, that join, leave and move draw what they draw in a fixed batch, to the last id."""

import pytest
import torch
from kit import CLASSES, SPECS, alone, batch_of, cases_of, checkered

from gentok.generators.autoregressive import Autoregressive
from gentok.generators.depth import DepthTransformer
from gentok.generators.masked import MaskedTransformer
from gentok.nn.kv_cache import KVCache
from gentok.rng import RowRNG
from gentok.samplers import row_queue
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.types import ABSENT, Class, Condition, ConditionSpec, Ids, IdsSpec, Tokens

SIZES = {"width": 16, "depth": 2, "heads": 2}
TEXT = ConditionSpec((("text", IdsSpec(tuple("abc"), 4)),))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def model_of(kind, spec="k2", conditions=CLASSES, **options):
    torch.manual_seed(0)
    cls = {"autoregressive": Autoregressive, "depth": DepthTransformer}[kind]
    model = cls(SPECS[spec], conditions, **SIZES, **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def draw(model, n=6, at_once=None, guidance=1.0, **options):
    """Every case n times, shuffled."""
    _, condition, codes, lengths = batch_of(cases_of(model), n)
    rng = RowRNG.of(3, torch.arange(len(codes)))
    known = Tokens(codes, model.spec)
    return AutoregressiveSampler(**options)(guided(model, guidance), condition, rng=rng, known=known, lengths=lengths, at_once=at_once)


MODELS = {
    "prefix": ("autoregressive", {}),
    "cross": ("autoregressive", {"condition_by": "cross"}),
    "adaln": ("autoregressive", {"condition_by": "adaln"}),
    "delayed": ("autoregressive", {"layout": "delayed"}),
    "ends": ("autoregressive", {"ends": True}),
    "depth": ("depth", {}),
    "depth, ends": ("depth", {"ends": True}),
}


@checkered(most=7, name=MODELS, guidance=[1.0, 2.0])
def test_rows_that_wait_and_join_draw_what_they_draw_in_a_fixed_batch(name, guidance):
    kind, options = MODELS[name]
    model = model_of(kind, **options)
    whole = draw(model, guidance=guidance)
    for at_once in (1, 4, 7):
        some = draw(model, guidance=guidance, at_once=at_once)
        assert torch.equal(some.tokens.codes, whole.tokens.codes)
        assert torch.equal(some.calls, whole.calls)
        if model.ends:
            assert torch.equal(some.tokens.lengths, whole.tokens.lengths)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_a_batch_equals_that_row_alone(name):
    """Where rows begin alike their first call is made once; a row alone shares with none."""
    kind, options = MODELS[name]
    model = model_of(kind, **options)
    together, by_itself = alone(AutoregressiveSampler(), model, cases_of(model), n=4)
    assert torch.equal(together, by_itself)


def test_rows_that_begin_alike_begin_once():
    model = model_of("autoregressive", "k1")
    n, known = 8, torch.full((8, 1, 4), -2)
    known[:, :, :2] = 1
    condition = Condition({"class": Class(torch.zeros(n, dtype=torch.int64))})
    rng = RowRNG.of(0, torch.arange(n))
    out = AutoregressiveSampler()(model, condition, rng=rng, known=Tokens(known, model.spec))
    assert out.network_calls["generator"] == (2, 3 + n)  # begin and two known cells of one row, then a step of all
    known[3, 0, 1] = 2  # another beginning
    out = AutoregressiveSampler()(model, condition, rng=rng, known=Tokens(known, model.spec))
    assert out.network_calls["generator"] == (2, 2 * 3 + n)
    condition.parts["class"].ids[5] = 1  # and another class
    out = AutoregressiveSampler()(model, condition, rng=rng, known=Tokens(known, model.spec))
    assert out.network_calls["generator"] == (2, 3 * 3 + n)


def test_waiting_rows_cost_no_positions_that_a_fixed_batch_does_not_spend():
    """One row of ten cells, and nine of one: in two places they need the positions that they draw, in a fixed batch as well."""
    model = model_of("autoregressive", "k1")
    lengths = torch.tensor([4, 1, 1, 1, 1])
    condition = Condition({"class": Class(torch.tensor([0, 1, -1, 0, 1]))})
    arguments = {"rng": RowRNG.of(0, torch.arange(5)), "lengths": lengths}
    two = AutoregressiveSampler()(model, condition, at_once=2, **arguments)
    calls, positions = two.network_calls["generator"]
    assert positions < 5 * 4  # of a batch whose rows stay to its end
    assert two.calls.tolist() == lengths.tolist()
    assert calls <= 8


@pytest.mark.parametrize("by", ["prefix", "cross"])
def test_texts_of_several_lengths_join_in_one_cache(by):
    model = model_of("autoregressive", "k1", TEXT, condition_by=by)
    ids = torch.tensor([[0, 1, 2, 0], [1, ABSENT, ABSENT, ABSENT], [ABSENT] * 4, [2, 2, ABSENT, ABSENT], [0, 1, 2, 0]])
    arguments = {"rng": RowRNG.of(0, torch.arange(5)), "lengths": torch.tensor([4, 1, 3, 4, 2])}
    whole = AutoregressiveSampler()(model, Condition({"text": Ids(ids)}), **arguments)
    arguments["rng"] = RowRNG.of(0, torch.arange(5))
    some = AutoregressiveSampler()(model, Condition({"text": Ids(ids)}), at_once=2, **arguments)
    assert torch.equal(some.tokens.codes, whole.tokens.codes)


# ------------------------------------------------------------------------------------------------------------------ caches


def fed_cache(model, condition, ids, capacity=4):
    cache = model.init_cache(condition, len(ids), capacity)
    model.logits(ids, cache, torch.zeros(len(ids), dtype=torch.int64))
    model.commit(cache, torch.zeros(len(ids), dtype=torch.int64))
    return cache


@pytest.mark.parametrize("name", ["prefix", "cross", "adaln", "depth"])
def test_a_row_that_was_copied_continues_as_a_row_that_was_computed(name):
    kind, options = MODELS[name]
    model = model_of(kind, "k1", **options)
    condition = Condition({"class": Class(torch.tensor([0, 1, 1]))})
    ids = torch.cat((model.begin.expand(3, 1, 1), torch.tensor([[[0]], [[2]], [[2]]])), 1)
    separate = fed_cache(model, condition, ids)
    copied = model.take(fed_cache(model, condition.rows([0, 1]), ids[:2]), torch.tensor([0, 1, 1]))
    joined = fed_cache(model, condition.rows([0, 0, 0]), ids[:1].expand(3, -1, -1))
    model.put(joined, torch.tensor([2, 1]), fed_cache(model, condition.rows([1, 1]), ids[1:]))
    step, at = torch.tensor([[[1]], [[0]], [[2]]]), torch.full((3,), 2)
    want = model.logits(step, separate, at)
    for cache in (copied, joined):
        assert (model.logits(step, cache, at) - want).nan_to_num().abs().max() < 1e-10
    wrong = model.take(separate, torch.tensor([0, 0, 0]))
    assert (model.logits(step, wrong, at) - want).nan_to_num().abs().max() > 1e-3


def test_a_copied_cache_has_memory_of_its_own():
    model = model_of("autoregressive", "k1")
    condition, ids = Condition({"class": Class(torch.tensor([0, 1]))}), model.begin.expand(2, 1, 1)
    cache = fed_cache(model, condition, ids)
    before = [k.clone() for k in cache.keys]
    other = model.take(cache, torch.tensor([1, 0]))
    model.logits(torch.zeros(2, 2, 1, dtype=torch.int64), other, torch.ones(2, dtype=torch.int64))
    assert all(map(torch.equal, cache.keys, before))


def test_caches_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="3 steps"):
        KVCache(1, 4, 5).put(torch.tensor([0]), KVCache(1, 1, 3))
    model = model_of("autoregressive", "k1")
    with pytest.raises(ValueError, match="at_once=0"):
        AutoregressiveSampler()(model, Condition({"class": Class(torch.tensor([0]))}), rng=RowRNG([0]), at_once=0)
    with pytest.raises(ValueError, match="cannot wait"):
        MaskGIT()(MaskedTransformer(SPECS["k1"], **SIZES), Condition(), rng=RowRNG([0]), at_once=1)


def test_an_index_on_the_cpu_serves_rows_at_different_steps():
    """`at` of a call may be an int64 tensor of the host: nothing else is read from the device to plan a call."""
    cache = KVCache(1, 2, 6, device=torch.device("cpu"))
    window = cache.window(torch.tensor([0, 3]), 2)
    assert window.slots.tolist() == [[0, 1], [3, 4]] and window.rows.tolist() == [[0], [1]] and window.length == 5


# ----------------------------------------------------------------------------------------------------------------- mutants


def test_mutant_that_forgets_the_condition_of_joining_rows(monkeypatch):
    model = model_of("autoregressive", "k1")
    condition = Condition({"class": Class(torch.tensor([0, 1, -1] * 20))})

    def run():
        return AutoregressiveSampler()(model, condition, rng=RowRNG.of(0, torch.arange(60))).tokens.codes

    whole = run()
    monkeypatch.setattr(Condition, "keys", lambda self, batch: [b""] * batch)
    assert not torch.equal(run(), whole)


def test_mutant_that_puts_joining_rows_into_places_in_another_order(monkeypatch):
    model = model_of("autoregressive", "k2", ends=True)
    whole = draw(model)
    place = row_queue.RowQueue._place

    def wrong(self, cache, joining, free, like):
        place(self, self.model.take(cache, torch.arange(len(joining)).roll(1)), joining, free, like)

    monkeypatch.setattr(row_queue.RowQueue, "_place", wrong)
    assert not torch.equal(draw(model, at_once=7).tokens.codes, whole.tokens.codes)


def test_mutant_whose_places_keep_the_keys_of_the_row_before(monkeypatch):
    model = model_of("autoregressive", "k2", ends=True)
    whole = draw(model)
    monkeypatch.setattr(KVCache, "put", lambda self, rows, other: None)
    assert not torch.equal(draw(model, at_once=4).tokens.codes, whole.tokens.codes)
