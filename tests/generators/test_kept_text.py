"""`condition.keep_text`: media read the chosen tokens of a text and no other, with a cache as without, and what the words mean."""

import pytest
import torch
from generator_kit import LEVELS, RASTER, autoregressive, codes, masked, randomise, same
from test_next_scale_generator import SPEC as PYRAMID
from test_next_scale_generator import fed_one_by_one, model_of

from gentok.generators.any_order import AnyOrderTransformer
from gentok.generators.masked import MaskedTransformer
from gentok.nn.conditioning import Conditioned
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import guided
from gentok.types import (
    ABSENT,
    KEEP_TEXT,
    ClassSpec,
    Condition,
    ConditionSpec,
    Ids,
    IdsSpec,
    Kept,
    Tokens,
    Vectors,
    VectorsSpec,
)

SPEC = ConditionSpec((("class", ClassSpec(("a", "b"))), ("text", IdsSpec(tuple("wxyz"), 5))))
BY = ("prefix", "cross", "adaln")


def given(text, keep=None, batch=2):
    return SPEC.parse({"class": "a", "text": text, **({} if keep is None else {"keep_text": keep})}, batch)


def any_order(spec, condition_spec, **options):
    return randomise(AnyOrderTransformer(spec, condition_spec, width=16, depth=2, heads=2, **options)).double()


def uncached(model, condition):
    tokens = codes(model.spec, 2)
    if isinstance(model, MaskedTransformer):
        return model.logits(Tokens.unknown(model.spec, 2), condition)
    return model(tokens, condition)


def cached(model, condition):
    cache, tokens = model.init_cache(condition, 2, model.layout.steps), codes(model.spec, 2)
    return model.logits(model.feed(tokens.codes), cache, torch.zeros(2, dtype=torch.int64))


MODELS = [(kind, by) for kind in (autoregressive, masked, any_order) for by in BY]


@pytest.mark.parametrize(("kind", "by"), MODELS)
def test_what_is_kept_counts_and_nothing_else_does(kind, by):
    model = kind(RASTER, SPEC, condition_by=by)
    plain = uncached(model, given("xyzw"))
    assert same(uncached(model, given("xyzw", "first:9")), plain) and same(uncached(model, given("xyzw", "all")), plain)
    kept = uncached(model, given("xyzw", "first:2"))
    assert not same(kept, plain) and not same(kept, uncached(model, given("yyzw", "first:2")))
    if kind is autoregressive or by != "prefix":  # in a prefix that reads both ways, what is taken away has told the others what it is
        assert same(kept, uncached(model, given("xyyx", "first:2")))
    flows = not same(uncached(model, given("xyzw", "last:1")), uncached(model, given("zzzw", "last:1")))
    assert flows == (by == "prefix")  # behind the embedding of symbols, but inside of the one stream


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(("spec", "layout"), [(RASTER, "raster"), (LEVELS, "delayed")])
def test_a_cache_reads_what_a_whole_pass_reads(spec, layout, by):
    model = autoregressive(spec, SPEC, condition_by=by, layout=layout)
    for keep in ("last:2", [0, -1], "first:1"):
        assert same(cached(model, given("xyzw", keep)), uncached(model, given("xyzw", keep)))
        assert not same(cached(model, given("xyzw", keep)), cached(model, given("xyzw")))


@pytest.mark.parametrize("by", BY)
def test_scales_of_a_pyramid_read_it_with_a_cache_as_without(by):
    model, tokens, condition = model_of(SPEC, condition_by=by), codes(PYRAMID, 2), given("xyzw", "first:2")
    whole = model(tokens, condition)
    assert same(fed_one_by_one(model, tokens, condition), whole, 1e-6)  # the codebook computes in float32
    assert not same(whole, model(tokens, given("xyzw"))) and not same(whole, model(tokens, given("yyzw", "first:2")))


def test_a_mutant_whose_prefix_is_read_whole_is_told(monkeypatch):
    model, condition = autoregressive(RASTER, SPEC), given("xyzw", "first:2")
    monkeypatch.setattr(Conditioned, "narrowed", lambda self, mask: mask)
    assert not same(cached(model, condition), uncached(model, condition))
    assert not same(uncached(model, condition), uncached(model, given("xyyx", "first:2")))


def test_vectors_of_an_encoder_are_taken_away_behind_it():
    spec = ConditionSpec((("text", VectorsSpec(6, 4)),))
    x, mask = torch.randn(2, 4, 6, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    other = x.clone()
    other[:, :2] += 1.0
    for by in BY:
        model = autoregressive(RASTER, spec, condition_by=by)
        last = Kept(torch.tensor([False, False, True, True]).expand(2, -1))
        a, b = (uncached(model, Condition({"text": Vectors(values, mask), KEEP_TEXT: last})) for values in (x, other))
        assert same(a, b) == (by != "prefix")


def test_rows_without_text_and_guidance_are_as_before():
    model, condition = autoregressive(RASTER, SPEC), given("xyzw", "last:1")
    assert same(uncached(model, condition.null()), uncached(model, given(None).null()))
    mixed = SPEC.parse({"text": ["xy", None], "keep_text": "first:1"}, 2)
    assert same(uncached(model, mixed)[1:], uncached(model, given(None).null())[1:])
    drawn = AutoregressiveSampler()(guided(model, 2.0), condition, rng=RowRNG.of(0, range(2)), known=Tokens.unknown(RASTER, 2))
    assert (drawn.tokens.codes >= 0).all()
    dropped = Condition.concat([condition.rows([0]), condition.drop(torch.tensor([True, True])).rows([1])])
    assert torch.equal(dropped.parts[KEEP_TEXT].mask[1], torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize(
    ("keep", "places"),
    [("first:2", "0 1"), ("last:2", "2 3"), ("2", "2"), (-1, "3"), (["0", "-1"], "0 3"), ([0, 9], "0"), ("first:7", "0 1 2 3")],
)
def test_words_and_positions_mean_tokens_of_each_rows_text(keep, places):
    kept = given("xyzw", keep).parts[KEEP_TEXT].mask
    assert kept[0].nonzero()[:, 0].tolist() == list(map(int, places.split()))


def test_the_last_tokens_are_those_of_each_row():
    kept = SPEC.parse({"text": ["xyz", "x"], "keep_text": "last:1"}, 2).parts[KEEP_TEXT].mask
    assert kept.nonzero().tolist() == [[0, 2], [1, 0]]
    assert KEEP_TEXT not in given("xyz", "all").parts


@pytest.mark.parametrize("keep", ["last:0", "last", "words", [0.5], [], "last:-1", True])
def test_words_that_mean_nothing_are_refused(keep):
    with pytest.raises(ValueError, match=r"condition.keep_text=.*: all, first:n or last:n \(n from 1\), or positions"):
        given("xyz", keep)


def test_a_text_of_which_nothing_would_be_left_and_a_model_without_one_are_refused():
    with pytest.raises(ValueError, match=r"condition.keep_text=\[7\] leaves nothing of the text of row 0, which has 3 tokens"):
        given("xyz", [7])
    with pytest.raises(ValueError, match="condition.keep_text=all: this model is conditioned on no text"):
        ConditionSpec((("class", ClassSpec(("a",))),)).parse({"class": "a", "keep_text": "all"}, 1)
    assert given("xyz").parts["text"].ids[0].tolist() == [1, 2, 3, ABSENT, ABSENT] and isinstance(given("xyz").parts["text"], Ids)
