"""Batches that begin at different times and share network calls are what they are by themselves, in every sampler of such models."""

from dataclasses import fields

import pytest
import torch
from kit import CLASSES, SPECS
from random_weights import randomized

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.any_order import AnyOrderTransformer
from gentok.generators.masked import MaskedTransformer
from gentok.generators.resgen import ResGen
from gentok.generators.self_speculative import SelfSpeculativeTransformer
from gentok.rng import RowRNG
from gentok.samplers.base import fitting
from gentok.samplers.guided import guided
from gentok.samplers.maskgit import MaskGIT
from gentok.serving import shared_calls
from gentok.serving.shared_calls import SharedCalls
from gentok.types import Class, Condition, Line, Tokens, TokenSpec

SIZES = {"width": 16, "depth": 2, "heads": 2}
WHEN = {0: [0, 1], 1: [2], 3: [3, 4, 5], 4: [6], 20: [7, 8]}
"""Step -> the rows of the batch that begins before it; the last one when nobody is there any more."""
LENGTHS = torch.tensor([3, 2, 3, 1, 3, 3, 2, 0, 1])


MODELS = {"masked": MaskedTransformer, "any_order": AnyOrderTransformer, "self_speculative": SelfSpeculativeTransformer, "resgen": ResGen}


def model_of(name):
    if name == "resgen":
        codebook = randomized(ResidualCodebook(VQ(3, 4, normalize=False), 2), 1)
        model = ResGen(TokenSpec((3, 3), Line(3)), CLASSES, codebook.double(), components=8, rank=3, **SIZES)
    else:
        model = MODELS[name](SPECS["k2"], CLASSES, **SIZES)
    return randomized(model, 2).double().eval()


def cases():
    """(model, sampler, its settings) of every sampler whose capability lets rows share calls."""
    for name in MODELS:
        for cls in fitting(model_of(name)):
            if cls.requires.rowwise:
                yield name, cls, {"steps": 3} if "steps" in {field.name for field in fields(cls)} else {}


def of(rows, spec):
    """What rows are drawn from: every third one knows its first cell."""
    codes = Tokens.unknown(spec, len(rows), LENGTHS[rows]).codes
    for i, row in enumerate(rows):
        if row % 3 == 0:
            codes[i, 0, 0] = row % 2
    return Condition({"class": Class(torch.tensor(rows) % 2)}), RowRNG(100 + torch.tensor(rows)), Tokens(codes, spec, LENGTHS[rows])


def draw(model, sampler, rows, guidance, seeds=None):
    condition, rng, known = of(rows, model.spec)
    return sampler(guided(model, guidance), condition, rng=rng if seeds is None else RowRNG(seeds), known=known)


def joined(model, sampler, guidance, seeds=lambda rows: None, shared=True):
    """Row -> (codes, calls), of batches that begin by and by; and how many calls the network had."""
    counted, made, step = [], {}, 0
    for name in sampler.requires.rowwise:
        plain = getattr(model, name)
        vars(model)[name] = lambda *args, plain=plain, **named: (counted.append(1), plain(*args, **named))[1]
    with SharedCalls(model, sampler.requires.rowwise if shared else ()) as calls:
        while step <= max(WHEN):
            if rows := WHEN.get(step):
                made[tuple(rows)] = calls.start(lambda twin, rows=rows: draw(twin, sampler, rows, guidance, seeds(rows)))
            calls.step()
            step += 1
        while not all(future.done() for future in made.values()):
            calls.step()
    for name in sampler.requires.rowwise:
        del vars(model)[name]
    outputs = {rows: future.result(0) for rows, future in made.items()}
    return {row: (one.tokens.codes[i], int(one.calls[i])) for rows, one in outputs.items() for i, row in enumerate(rows)}, len(counted)


def same(found, whole):
    return all(codes.equal(whole.tokens.codes[row]) and calls == int(whole.calls[row]) for row, (codes, calls) in found.items())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name, cls, settings", list(cases()), ids=lambda value: getattr(value, "__name__", None))
def test_a_batch_that_comes_later_draws_what_it_draws_alone(name, cls, settings, guidance):
    model, sampler = model_of(name), cls(**settings)
    whole = draw(model, sampler, list(range(9)), guidance)
    found, calls = joined(model, sampler, guidance)
    assert len(found) == 9 and same(found, whole)
    assert all(draw(model, sampler, [row], guidance).tokens.codes[0].equal(found[row][0]) for row in (0, 4, 6))
    assert calls < joined(model, sampler, guidance, shared=False)[1]


def test_batches_that_share_a_seed_or_get_the_rows_of_others_are_found_out(monkeypatch):
    model, sampler = model_of("masked"), MaskGIT(steps=3)
    whole = draw(model, sampler, list(range(9)), 2.0)
    assert not same(joined(model, sampler, 2.0, lambda rows: 100 + torch.arange(len(rows)))[0], whole)
    kept = shared_calls._rows
    monkeypatch.setattr(shared_calls, "_rows", lambda answer, rows: kept(answer.roll(1, 0), rows))
    assert not same(joined(model, sampler, 2.0)[0], whole)


def test_an_error_of_the_network_reaches_all_who_called_and_one_of_a_batch_itself_no_other():
    model, sampler = model_of("masked"), MaskGIT(steps=3)

    def fails(twin):
        condition, _, known = of([0], twin.spec)
        twin.logits(known, condition)
        raise ArithmeticError("its own")

    with SharedCalls(model, ("logits",)) as calls:
        wrong, right = calls.start(fails), calls.start(lambda twin: draw(twin, sampler, [1], 1.0))
        calls.step()
        assert isinstance(wrong.exception(0), ArithmeticError) and not right.done()
        vars(model)["logits"] = lambda *args: 1 / 0
        calls.step()
        assert isinstance(right.exception(0), ZeroDivisionError)
        left = calls.start(lambda twin: draw(twin, sampler, [1], 1.0))
    assert "given up" in str(left.exception(5))
