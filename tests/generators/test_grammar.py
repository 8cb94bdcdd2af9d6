"""A model of tokens with a grammar: impossible ids have probability zero, the others are renormalised, by every
path to the logits."""

import itertools

import pytest
import torch
from generator_kit import autoregressive, fed, same

import gentok.generators.autoregressive as model_file
from gentok.bundle import build_generator
from gentok.cli import compose
from gentok.grammar import Follower, Grammar
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, Line, Tokens, TokenSpec

# a b . | x ! | < >: text of a and b, speech of x, orders "text first" and "in turns of one"
PARTS = (("text", 0, 2), ("end_of_text", 2, 3), ("speech", 3, 4), ("end_of_speech", 4, 5), ("first", 5, 6), ("turns", 6, 7))
NO = (-1, -1)
GRAMMAR = (
    (-1, -1, -1, -1, 4, 5), (-1, -1, -1, -1, *NO), (2, 1, -1, -1, *NO), (-1, -1, 3, 1, *NO),
    (4, 3, -1, -1, *NO), (6, 3, -1, -1, *NO), (-1, -1, 5, 2, *NO),
)  # fmt: skip
N = 6
SPEC = TokenSpec((7,), Line(N), parts=PARTS, grammar=GRAMMAR)
FREE = TokenSpec((7,), Line(N))


def rows_of_the_grammar():
    """Every row that the grammar admits, walked id by id: those that end within N ids, and those that N ids cut."""
    part = [p for p, (_, start, stop) in enumerate(PARTS) for _ in range(start, stop)]
    found = []

    def walk(row, state):
        if max(GRAMMAR[state]) < 0 or len(row) == N:
            found.append(row)
            return
        for i in range(7):
            if GRAMMAR[state][part[i]] >= 0:
                walk([*row, i], GRAMMAR[state][part[i]])

    walk([], 0)
    return found


def tokens_of(rows):
    codes = torch.full((len(rows), 1, N), ABSENT)
    for row, ids in zip(codes, rows):
        row[0, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return Tokens(codes, SPEC, torch.tensor([len(row) for row in rows]))


@pytest.fixture(scope="module")
def pair():
    """The same weights, with the grammar and without."""
    return autoregressive(SPEC, ends=True), autoregressive(FREE, ends=True)


def test_the_rows_that_are_possible_have_all_the_probability(pair):
    model, rows = pair[0], rows_of_the_grammar()
    nats = model.nll_bound(tokens_of(rows), Condition())
    assert len(rows) > 50 and abs(float((-nats).exp().sum()) - 1) < 1e-9
    every = torch.tensor(list(itertools.product(range(7), repeat=3)))
    codes = torch.cat((every, torch.full((len(every), N - 3), ABSENT)), 1)[:, None]
    possible = {tuple(row) for row in rows if len(row) == 3}
    nats = model.nll_bound(Tokens(codes, SPEC), Condition())
    assert {tuple(row) for row in every[nats.isfinite()].tolist()} == possible and not nats.isnan().any()


class EverythingIsPossible(Grammar):
    def allowed(self, state):
        out = super().allowed(state)
        out[..., :-1] = True
        return out


class MapsComposedWithThemselves(Grammar):
    @staticmethod
    def _compose(first, second):
        return second.gather(2, second)


class RowsBeginInAnotherState(Grammar):
    def states(self, ids):
        out = super().states(ids)
        out[:, 0] = 1
        return out


class TheEndIsNeverPossible(Grammar):
    def allowed(self, state):
        out = super().allowed(state)
        out[..., -1] = False
        return out


@pytest.mark.parametrize("defective", [grammar for grammar in Grammar.__subclasses__() if grammar.__module__ == __name__])
def test_the_sum_of_all_probability_catches_a_grammar_that_is_read_wrongly(defective, monkeypatch):
    monkeypatch.setattr(model_file, "Grammar", defective)
    nats = autoregressive(SPEC, ends=True).nll_bound(tokens_of(rows_of_the_grammar()), Condition())
    assert not abs(float((-nats).exp().sum()) - 1) < 1e-3


def test_nll_is_that_of_the_free_model_renormalised_over_what_is_possible(pair):
    model, free = pair
    tokens = tokens_of(rows_of_the_grammar())
    distributions, grammar = free(Tokens(tokens.codes, FREE, tokens.lengths)).log_softmax(-1)[:, :, 0], Grammar(SPEC)
    expected = torch.zeros(tokens.batch, dtype=torch.float64)
    for b, (row, length) in enumerate(zip(tokens.codes[:, 0].tolist(), tokens.lengths.tolist())):
        state = torch.tensor(0)
        for n in range(min(length + 1, N)):
            able = [i for i in range(8) if bool(grammar.allowed(state)[i])]
            target = row[n] if n < length else 7
            expected[b] += distributions[b, n, able].logsumexp(0) - distributions[b, n, target]
            state = grammar.step(state, torch.tensor(row[n]))
    out = model.loss(tokens, Condition())
    assert torch.allclose(out.nll, expected, atol=1e-9)
    assert torch.allclose(out.nll, model.nll_bound(tokens, Condition()))
    ended = tokens.lengths < N
    assert int(out.count) == int(tokens.lengths.sum() + ended.sum())
    certain = model(tokens).log_softmax(-1)[ended, tokens.lengths[ended], 0, 7]
    assert torch.equal(certain, torch.zeros_like(certain))  # after the last part's end, the row's end is sure


def test_smoothed_losses_are_finite_and_against_what_is_possible(pair):
    model = autoregressive(SPEC, ends=True, label_smoothing=0.5).train()
    tokens = tokens_of(rows_of_the_grammar())
    distributions, there = model(tokens)[:, :, 0].log_softmax(-1), torch.zeros(tokens.batch, N, dtype=torch.bool)
    able = distributions.isfinite()
    uniform = -(distributions.masked_fill(~able, 0.0).sum(2) / able.sum(2))
    there = torch.arange(N) <= tokens.lengths[:, None]
    out = model.loss(tokens, Condition())
    expected = 0.5 * out.nll.sum() + 0.5 * (uniform * there).sum()
    assert torch.allclose(out.loss * out.count, expected)
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_cached_logits_step_by_step_in_chunks_and_as_a_tree_are_those_of_one_pass(pair):
    model, tokens = pair[0], tokens_of(rows_of_the_grammar()[::7])
    whole, ids = model(tokens), fed(model, tokens)[:, :N]
    batch = len(ids)
    for width in (1, 2, 3, N):
        cache = model.init_cache(Condition(), batch, N)
        for first in range(0, N, width):
            at = torch.full((batch,), first)
            assert same(model.logits(ids[:, first : first + width], cache, at), whole[:, first : first + width])
            model.commit(cache, at)
    # a tree: two guesses for step 1, of which the second is right, and its child
    cache, at = model.init_cache(Condition(), batch, N + 2), torch.zeros(batch, dtype=torch.int64)
    model.logits(ids[:, :1], cache, at)
    model.commit(cache, at)
    wrong = torch.where(ids[:, 1:2] == 5, 6, 5)
    parents = torch.tensor([[-1, -1, 1]]).expand(batch, -1)
    out = model.logits(torch.cat((wrong, ids[:, 1:3]), 1), cache, at + 1, parents)
    assert same(out[:, 1:], whole[:, 1:3])
    model.commit(cache, at + 1, torch.tensor([[1, 2]]).expand(batch, -1))
    assert same(model.logits(ids[:, 3:4], cache, at + 3), whole[:, 3:4])


class CommitsAStepTooEarly(Follower):
    def commit(self, at, path):
        super().commit(at - 1, path)


class RootsFollowTheFirstStepOfTheTree(Follower):
    def read(self, ids, at, parents=None):
        return super().read(ids, at, None if parents is None else parents.clamp(min=0))


@pytest.mark.parametrize("defective", [follower for follower in Follower.__subclasses__() if follower.__module__ == __name__])
def test_the_comparison_of_caches_catches_a_place_that_is_lost(defective, monkeypatch):
    monkeypatch.setattr(model_file, "Follower", defective)
    with pytest.raises((AssertionError, IndexError)):
        test_cached_logits_step_by_step_in_chunks_and_as_a_tree_are_those_of_one_pass((autoregressive(SPEC, ends=True),))


def test_samples_are_rows_of_the_grammar_with_the_models_own_frequencies(pair):
    model, rows = pair[0], rows_of_the_grammar()
    distribution = (-model.nll_bound(tokens_of(rows), Condition())).exp()
    count = 4000
    out = AutoregressiveSampler()(model, Condition(), rng=RowRNG.of(0, torch.arange(count))).tokens
    number = {tuple(row): i for i, row in enumerate(rows)}
    seen = torch.zeros(len(rows), dtype=torch.float64)
    for row, length in zip(out.codes[:, 0].tolist(), out.lengths.tolist()):
        seen[number[tuple(row[:length])]] += 1
    spread = (distribution * (1 - distribution) * count).sqrt().clamp(min=1)
    assert float(((seen - count * distribution).abs() / spread).max()) < 4.5
    assert float((seen / count - distribution).abs().sum()) / 2 < 0.1


def test_what_is_known_is_kept_and_the_rest_follows_it(pair):
    model, known = pair[0], torch.full((40, 1, N), UNKNOWN)
    known[:20, 0, :3] = torch.tensor([5, 1, 2])  # the text b, then speech
    known[20:, 0, :3] = torch.tensor([6, 2, 3])  # no text
    out = AutoregressiveSampler(temperature=0.8)(model, Condition(), rng=RowRNG.of(1, torch.arange(40)), known=Tokens(known, SPEC)).tokens
    assert torch.equal(out.codes[:, :, :3], known[:, :, :3])
    for row, length in zip(out.codes[:, 0].tolist(), out.lengths.tolist()):
        assert set(row[3 : length - 1]) <= {3} and (length == N or row[length - 1] == 4)


def test_generators_that_cannot_follow_are_refused_in_one_line():
    class Shell:
        spec, codebook = SPEC, None

    for name in ("masked", "any_order", "depth"):
        with pytest.raises(ValueError, match="generator=autoregressive") as error:
            build_generator(compose("config", [f"generator={name}"])["generator"], Shell, ConditionSpec())
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="generator.ends=true"):
        autoregressive(SPEC)
