"""Ids that are steps on a canvas: a model is told which point a row has come to, by every path to the logits."""

import itertools

import pytest
import torch
from generator_kit import autoregressive, fed, same

import gentok.generators.autoregressive as model_file
from gentok.generators.causal_masked import CausalMasked
from gentok.grammar import Follower, Grammar
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import ABSENT, Condition, Line, Tokens, TokenSpec

SIDE, N = 3, 6  # end | go | one step per point; every step stands behind a `go`
PARTS = (("end", 0, 1), ("go", 1, 2), ("step", 2, 2 + SIDE**2))
GRAMMAR = ((-1, 1, -1), (-1, -1, 2), (3, 1, -1), (-1, -1, -1))
SPEC = TokenSpec((2 + SIDE**2,), Line(N), parts=PARTS, grammar=GRAMMAR, canvas=SIDE)


def rows():
    found = [[1, 2 + s, 0] for s in range(9)] + [[1, 2 + s, 1, 2 + t, 0] for s, t in itertools.product(range(9), repeat=2)]
    codes = torch.tensor([row + [ABSENT] * (N - len(row)) for row in found])[:, None]
    return Tokens(codes, SPEC, torch.tensor([len(row) for row in found]))


def test_states_are_those_of_one_id_after_the_other_and_points_the_sums_of_steps():
    grammar, ids = Grammar(SPEC), rows().codes[:, 0]
    states, state, x, y = grammar.states(ids), grammar.start(len(ids)), 0, 0
    for n in range(N):
        assert torch.equal(states[:, n], state)
        here = torch.stack((x % SIDE, y % SIDE)) if n else torch.zeros(2, len(ids), dtype=torch.int64)
        assert torch.equal(torch.stack(grammar.point(state)), here)
        step = torch.where(ids[:, n] >= 2, ids[:, n] - 2, 0)
        x, y, state = x + step % SIDE, y + step // SIDE, grammar.step(state, ids[:, n])


def check_caches(model):
    tokens = rows().rows(torch.arange(0, 90, 7))
    whole, ids = model(tokens), fed(model, tokens)[:, :N]
    for width in (1, 2, N):
        cache = model.init_cache(Condition(), len(ids), N)
        for first in range(0, N, width):
            at = torch.full((len(ids),), first)
            assert same(model.logits(ids[:, first : first + width], cache, at), whole[:, first : first + width])
            model.commit(cache, at)
    cache, at = model.init_cache(Condition(), len(ids), N + 2), torch.zeros(len(ids), dtype=torch.int64)
    model.logits(ids[:, :2], cache, at)
    model.commit(cache, at)
    guesses = torch.cat((torch.where(ids[:, 2:3] == 5, 6, 5), ids[:, 2:4]), 1)  # a wrong one, the right one, and its child
    out = model.logits(guesses, cache, at + 2, torch.tensor([[-1, -1, 1]]).expand(len(ids), -1))
    assert same(out[:, 1:], whole[:, 2:4])
    model.commit(cache, at + 2, torch.tensor([[1, 2]]).expand(len(ids), -1))
    assert same(model.logits(ids[:, 4:5], cache, at + 4), whole[:, 4:5])


def test_cached_logits_in_chunks_and_as_a_tree_are_those_of_one_pass():
    check_caches(autoregressive(SPEC, ends=True))


class StaysWhereItIs(Follower):
    """Forgets the point at each commit of a path."""

    def commit(self, at, path):
        self._last = self._last % self.grammar.size
        super().commit(at, path)


class StepsFromTheCorner(Grammar):
    def point(self, state):
        return tuple(torch.zeros_like(state) for _ in range(2))


@pytest.mark.parametrize(("name", "defective"), [("Follower", StaysWhereItIs), ("Grammar", StepsFromTheCorner)])
def test_a_point_that_is_lost_is_noticed(name, defective, monkeypatch):
    whole = autoregressive(SPEC, ends=True)(rows())
    monkeypatch.setattr(model_file, name, defective)
    model = autoregressive(SPEC, ends=True)
    if name == "Follower":
        with pytest.raises(AssertionError):
            check_caches(model)
    else:
        assert not same(model(rows()), whole)


def test_samples_have_the_models_own_frequencies():
    model, tokens, count = autoregressive(SPEC, ends=True), rows(), 3000
    distribution = (-model.nll_bound(tokens, Condition())).exp()
    out = AutoregressiveSampler()(model, Condition(), rng=RowRNG.of(0, torch.arange(count))).tokens
    number = {tuple(row): i for i, row in enumerate(tokens.codes[:, 0].tolist())}
    seen = torch.zeros(tokens.batch, dtype=torch.float64)
    for row in out.codes[:, 0].tolist():
        if tuple(row) in number:  # rows of three steps and more are the rest
            seen[number[tuple(row)]] += 1
    spread = (distribution * (1 - distribution) * count).sqrt().clamp(min=1)
    assert float(distribution.sum()) > 0.3 and float(((seen - count * distribution).abs() / spread).max()) < 4.5


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match=r"canvas\^2 = 16 ids"):
        TokenSpec((11,), Line(N), parts=PARTS, grammar=GRAMMAR, canvas=4)
    with pytest.raises(ValueError, match="tokenizer.relative=false"):
        CausalMasked(SPEC, width=16, depth=1, heads=2, ends=True)
    assert TokenSpec.from_dict(SPEC.to_dict()) == SPEC and "canvas" not in TokenSpec((7,), Line(3)).to_dict()
