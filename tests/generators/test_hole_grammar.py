"""Holes of rows with a grammar: what fills them can be read together with what is kept, and these fills have all the probability."""

import itertools

import pytest
import torch
from generator_kit import randomise
from test_grammar import FREE, GRAMMAR, PARTS, SPEC, N, rows_of_the_grammar, tokens_of

import gentok.generators.causal_masked as model_file
from gentok.generators.causal_masked import CausalMasked
from gentok.generators.hole_grammar import HoleGrammar
from gentok.region_likelihood import region_nll
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.types import ABSENT, UNKNOWN, Condition, Tokens

KEPT = [("<a.x!", (1,)), (">ax.xx", (1, 2)), ("<ab.x!", (1, 3)), (">axbx.", (2, 4)), ("<ab.xx", (0, 2, 3))]


def row_of(text):
    return ["ab.x!<>".index(c) for c in text]


def model_of(spec=SPEC, **options):
    return randomise(CausalMasked(spec, ends=True, width=16, depth=2, heads=2, shape="spans", **options)).double()


def asked(holes):
    return torch.tensor([p in holes for p in range(N)])[None]


def fills(row, holes):
    """Every row of the grammar that keeps what `row` has outside of `holes`, and every other row that does."""
    whole = {tuple(r) for r in rows_of_the_grammar() if len(r) == len(row)}
    part = [p for p, (_, start, stop) in enumerate(PARTS) for _ in range(start, stop)]
    whole = {r for r in whole if len(r) == N or max(GRAMMAR[state_after(r, part)]) < 0}
    every = []
    for ids in itertools.product(range(7), repeat=len(holes)):
        filled = list(row)
        for p, i in zip(holes, ids):
            filled[p] = i
        every.append(tuple(filled))
    return [r for r in every if r in whole], [r for r in every if r not in whole]


def state_after(row, part):
    state = 0
    for i in row:
        state = GRAMMAR[state][part[i]]
    return state


def probability(model, rows, holes):
    nats, _, exact = region_nll(model, tokens_of(rows), Condition(), asked(holes), RowRNG.of(0, range(len(rows))))
    assert exact
    return (-nats).exp()


@pytest.mark.parametrize("text,holes", KEPT)
def test_what_can_be_read_has_all_the_probability(text, holes):
    model = model_of()
    good, bad = fills(row_of(text), holes)
    assert tuple(row_of(text)) in good and bad
    assert probability(model, good, holes).sum() == pytest.approx(1.0, abs=1e-12)
    assert float(probability(model, bad, holes).sum()) == 0.0


def test_rows_that_keep_different_parts_have_grammars_of_their_own():
    model, holes = model_of(), (1, 3)
    rows = [row_of("<ab.x!"), row_of(">axbxa"), row_of("<bb.x!")]
    together = probability(model, rows, holes)
    alone = torch.cat([probability(model, [row], holes) for row in rows])
    assert torch.allclose(together, alone, atol=1e-12)
    with pytest.raises(ValueError, match="draw all at once"):
        known = tokens_of(rows)
        known.codes[:, 0, list(holes)] = UNKNOWN
        model.arranged(known).init_cache(Condition(), 2, 12)


def test_teacher_forcing_and_the_cache_agree():
    model, holes = model_of(), (1, 2)
    rows = [row_of(">ax.xx"), row_of(">bxaxa")]
    tokens = tokens_of(rows)
    known = Tokens(tokens.codes.clone(), SPEC, tokens.lengths)
    known.codes[:, 0, list(holes)] = UNKNOWN
    order = model.arranged(known)
    forced = order(tokens, Condition())
    cached = order.logits(order.feed(tokens.codes), order.init_cache(Condition(), 2, order.layout.steps), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(forced.isinf(), cached.isinf()) and bool(forced.isinf().any())
    there = ~forced.isinf()
    assert torch.allclose(forced[there], cached[there], atol=1e-10)


class WithoutASight(HoleGrammar):
    """Looks at the state alone, and not at what is kept behind the hole."""

    def _ways(self, codes, follows):
        return torch.ones_like(super()._ways(codes, follows))


@pytest.mark.parametrize("grammar", [HoleGrammar, WithoutASight])
def test_samples_fill_holes_so_that_rows_can_be_read(grammar, monkeypatch):
    monkeypatch.setattr(model_file, "HoleGrammar", grammar)
    row, holes, n = row_of("<ab.xx"), (1, 3), 400
    known = torch.tensor(row).repeat(n, 1, 1)
    known[:, 0, list(holes)] = UNKNOWN
    drawn = AutoregressiveSampler()(model_of(), Condition(), rng=RowRNG.of(3, range(n)), known=Tokens(known, SPEC)).tokens.codes[:, 0]
    good, _ = fills(row, holes)
    assert {tuple(r) for r in drawn.tolist()} == set(good) or grammar is WithoutASight
    read = sum(tuple(r) in set(good) for r in drawn.tolist())
    assert read == n if grammar is HoleGrammar else read < n


def test_holes_that_nothing_fits_are_refused_in_one_line():
    known = tokens_of([row_of("<a.x!"), row_of("<a.x!")])
    known.codes[:, 0, 2], known.codes[:, 0, 3] = UNKNOWN, 0  # a letter behind what can only be a letter or the end of the text
    known.codes[:, 0, 1] = 2
    with pytest.raises(ValueError, match="no ids .* choose holes of whole commands"):
        AutoregressiveSampler()(model_of(), Condition(), rng=RowRNG.of(0, range(2)), known=known)


def test_training_on_holes_does_not_read_off_what_follows_them():
    model, free = model_of(holes=2.0), model_of(FREE, holes=2.0)
    free.load_state_dict(model.state_dict())
    tokens = tokens_of([row for row in rows_of_the_grammar() if len(row) == N][::5])
    rng = [RowRNG.of(1, range(tokens.batch)) for _ in range(2)]
    own = model.train().loss(tokens, Condition(), rng[0])
    assert torch.equal(own.loss, free.train().loss(Tokens(tokens.codes, FREE, tokens.lengths), Condition(), rng[1]).loss)
    assert bool((tokens.codes != ABSENT).all())
